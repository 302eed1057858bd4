"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Tests run beside each other's actors: more threads than cores would slow all of them.
torch.set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled networks go to a folder of the tests, not to the user's."""
    import os

    os.environ["ROADMASK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data beside the repository; tests that want it are skipped where it isn't."""
    if not SHARED.is_dir():
        pytest.skip(f"real footage is not here: {SHARED} does not exist")
    return SHARED
