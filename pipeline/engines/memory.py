"""How full a GPU's memory is."""

from __future__ import annotations

import sys
import time

_EVERY_SECONDS = 1.0  # asking the driver takes a tenth of a millisecond
_last: tuple[float, tuple[int, int] | None] = (0.0, None)


def device_bytes() -> tuple[int, int] | None:
    """Memory of the current CUDA device in use by anybody, and all of it, in bytes.

    A second old at most. None where this process has no such device in use.
    """
    global _last  # noqa: PLW0603
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    asked_at, found = _last
    if time.monotonic() - asked_at > _EVERY_SECONDS:
        free, total = torch.cuda.mem_get_info()
        found = (total - free, total)
        _last = time.monotonic(), found
    return found
