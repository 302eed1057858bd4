"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest
import torch

from tests.media import has_ffmpeg

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Tests run beside each other's actors: more threads than cores would slow all of them.
torch.set_num_threads(1)
cv2.setNumThreads(1)


def pytest_configure() -> None:
    if os.environ.get("REQUIRE_FFMPEG") == "1" and not has_ffmpeg():
        raise pytest.UsageError("REQUIRE_FFMPEG=1, but the ffmpeg and ffprobe commands are missing")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled networks go to a folder of the tests, not to the user's."""
    os.environ["ROADMASK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data beside the repository; tests that want it are skipped where it isn't."""
    if not SHARED.is_dir():
        pytest.skip(f"real footage is not here: {SHARED} does not exist")
    return SHARED
