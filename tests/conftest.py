"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.cameras import has_broker, has_rtsp_server
from tests.media import has_ffmpeg
from tests.prometheus import has_prometheus

SHARED = Path(__file__).resolve().parents[2] / "shared"

# gcsfs would ask Google itself what kind of bucket it is, whatever the address. Read when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# Tests run beside each other's actors: more threads than cores would slow all of them.
torch.set_num_threads(1)
cv2.setNumThreads(1)

# No test is timed, and a loaded machine must fail none. The examples are the same in every run, so that one
# that fails tells of the change it is run on; `pytest --hypothesis-profile explore` looks for further ones.
settings.register_profile(
    "explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "tests", settings.get_profile("explore"), derandomize=True, database=None, print_blob=False
)
settings.load_profile("tests")


def pytest_configure() -> None:
    if os.environ.get("REQUIRE_FFMPEG") == "1" and not has_ffmpeg():
        raise pytest.UsageError("REQUIRE_FFMPEG=1, but the ffmpeg and ffprobe commands are missing")
    if os.environ.get("REQUIRE_CUDA") == "1" and not torch.cuda.is_available():
        raise pytest.UsageError("REQUIRE_CUDA=1, but there is no CUDA device")
    if os.environ.get("REQUIRE_PROMETHEUS") == "1" and not has_prometheus():
        raise pytest.UsageError("REQUIRE_PROMETHEUS=1, but Prometheus or its promtool is missing")
    if os.environ.get("REQUIRE_RTSP") == "1" and not has_rtsp_server():
        raise pytest.UsageError("REQUIRE_RTSP=1, but GStreamer's RTSP server is missing")
    if os.environ.get("REQUIRE_MQTT") == "1" and not has_broker():
        raise pytest.UsageError("REQUIRE_MQTT=1, but the mosquitto broker is missing")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled networks go to a folder of the tests, not to the user's."""
    os.environ["ROADMASK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four labelled pictures, not to be written to."""
    from tests.drives import write_pictures

    return write_pictures(tmp_path_factory.mktemp("drive") / "train")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model of the same classes as `pictures`."""
    from tests.drives import write_teacher

    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data beside the repository; tests that want it are skipped where it isn't."""
    if not SHARED.is_dir():
        pytest.skip(f"real footage is not here: {SHARED} does not exist")
    return SHARED
