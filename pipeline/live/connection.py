"""One opened camera: its packets as they arrive, and the decoder that makes frames of them."""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame

from pipeline.errors import MediaError
from pipeline.live.address import Address
from pipeline.media import Tally, choose_stream, decode_packet
from pipeline.planes import PlaneConverter
from pipeline.session import StreamParameters
from pipeline.session.stream import matrix_of

# An address from outside must not make FFmpeg read files: a playlist may name what it likes.
_NETWORK_PROTOCOLS = (
    "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto,srt,"
    "rtmp,rtmps,rtmpt,rtmpts,rtmpte,ffrtmphttp,ffrtmpcrypt,data"
)
_ANALYZE_SECONDS = {"rtsp": 1.5, "udp": 3.0, "srt": 3.0, "rtmp": 3.0, "http": 3.0}
_UDP_BUFFER_BYTES = 4 << 20
_SEGMENTED = ("hls", "dash")  # whole segments arrive at once
_CLOCKLESS = ("mpjpeg", "mjpeg")  # their frames have no time stamps of their own
_DEVICE_PROBLEMS = {
    errno.ENOENT: "no such device; is it plugged in?",
    errno.ENODEV: "no such device; is it plugged in?",
    errno.ENOTTY: "this is no video device",
    errno.EISDIR: "this is no video device",
    errno.EINVAL: "this device gives no video; a camera's second device often gives its data only",
    errno.EBUSY: "another program uses it",
    errno.EACCES: "no permission; users who may are in the group `video`",
    errno.EPERM: "no permission; users who may are in the group `video`",
}
_STAMPS_KEPT = 128  # packets whose arrival is remembered until their frame comes out


class CameraError(Exception):
    """Why a connection ended, in one line without secrets.

    Attributes:
        refused: the camera wants another user or password: asking again soon could lock it.
        hopeless: trying again cannot help.
    """

    def __init__(self, reason: str, *, refused: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.refused, self.hopeless = refused, hopeless


class Connection:
    """Opens a camera, and gives its packets and frames.

    `packets` and `decode` may run in two threads; `close` only when neither does.

    Attributes:
        parameters: of its video stream.
    """

    def __init__(self, address: Address, open_seconds: float, silence_seconds: float) -> None:
        """
        Args:
            open_seconds: how long opening may take.
            silence_seconds: how long a packet may take to come.

        Raises:
            CameraError: it cannot be opened, or holds no video.
        """
        self._address, self._silence_seconds = address, silence_seconds
        self._tally = Tally()
        self._arrived: OrderedDict[int, float] = OrderedDict()
        self._container = _open(address, open_seconds, silence_seconds)
        try:
            self._stream = choose_stream(self._container, address.shown, self._tally)
            for other in self._container.streams:
                if other.index != self._stream.index:
                    other.discard = Discard.all
            # A decoder of its own, on one thread: more would hold frames back, and what is recorded
            # is decoded alike when it is played again.
            self.parameters = StreamParameters.of(
                self._stream,
                _matrix(address, self._stream.index),
                counted=self._container.format.name in _CLOCKLESS,
            )
            self._decoder = self.parameters.open_decoder()
        except MediaError as error:
            self._container.close()
            raise CameraError(str(error).removeprefix(f"{address.shown}: ")) from error
        except BaseException:
            self._container.close()
            raise

    @property
    def _silence(self) -> str:
        return f"nothing came for {self._silence_seconds:g} s"

    @property
    def paced(self) -> bool:
        """Whether packets come faster than they are to be shown, as from a file or in segments."""
        if self._address.kind in ("rtsp", "udp", "srt", "rtmp", "device"):
            return False
        known_end = self._container.duration is not None and self._container.duration > 0
        return known_end or self._container.format.name in _SEGMENTED

    def stamp_seconds(self, frame: VideoFrame) -> float | None:
        """The frame's time by the camera's own clock; None where FFmpeg just counts frames."""
        if frame.pts is None or self._container.format.name in _CLOCKLESS:
            return None
        return float(frame.pts * self.parameters.time_base)

    def packets(self, wait: Callable[[float], Any]) -> Iterator[tuple[Packet, float]]:
        """Video packets and the `time.time()` at which each arrived, to the end of the stream.

        Args:
            wait: sleeps for so many seconds; called only if the source is `paced`.

        Raises:
            CameraError: the connection broke, or nothing came for too long.
        """
        pace = _Pace(self.parameters.time_base) if self.paced else None
        asked_at = time.monotonic()
        try:
            for packet in self._container.demux(self._stream):
                if time.monotonic() - asked_at >= self._silence_seconds:
                    # FFmpeg gives the last packet it held back before it says that time is over.
                    raise CameraError(self._silence)
                if packet.size == 0:  # at the end: makes a decoder give what it holds
                    return
                if pace is not None:
                    pace.keep(packet, wait)
                yield packet, time.time()
                asked_at = time.monotonic()
        except av.FFmpegError as error:
            raise CameraError(self._why(error)) from error

    def decode(
        self, packet: Packet | None, arrived: float
    ) -> tuple[list[tuple[VideoFrame, float]], int]:
        """Frames that a packet completes, each with its own packet's arrival; None for the last.

        Returns:
            the frames, and how many packets could not be decoded.
        """
        if packet is not None and packet.pts is not None:
            self._arrived[packet.pts] = arrived
            if len(self._arrived) > _STAMPS_KEPT:
                self._arrived.popitem(last=False)
        before = self._tally.undecodable_packets
        frames = decode_packet(self._decoder, packet, self._tally)  # type: ignore[arg-type]
        stamped = [
            (frame, self._arrived.pop(frame.pts, arrived) if frame.pts is not None else arrived)
            for frame in frames
        ]
        return stamped, self._tally.undecodable_packets - before

    def close(self) -> None:
        """Hangs up. May be called more than once."""
        self._container.close()

    def _why(self, error: av.FFmpegError) -> str:
        if isinstance(error, av.ExitError):
            return self._silence
        return self._address.scrub(f"the connection broke: {error.strerror}")


class _Pace:
    """Lets packets go when they are due by their own time stamps."""

    _LONGEST_WAIT_SECONDS = 10.0

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._zero: float | None = None  # monotonic time of stamp 0

    def keep(self, packet: Packet, wait: Callable[[float], Any]) -> None:
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        seconds, now = float(stamp * self._time_base), time.monotonic()
        if self._zero is None or not -2 < seconds + self._zero - now < self._LONGEST_WAIT_SECONDS:
            self._zero = now - seconds  # the first, or a clock that was started anew
        wait(max(0.0, seconds + self._zero - now))


def _open(address: Address, open_seconds: float, silence_seconds: float) -> Any:
    kind = address.kind
    name = f"file:{address.url}" if kind == "file" else address.url
    try:
        return av.open(
            name,
            format="v4l2" if kind == "device" else None,
            container_options=_options(address),
            metadata_errors="replace",
            timeout=(open_seconds, silence_seconds),
        )
    except av.FFmpegError as error:
        raise _open_error(address, error, open_seconds) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        without = kind == "device" and isinstance(error, ValueError)  # "no container format 'v4l2'"
        if without:
            reason = "the FFmpeg inside this PyAV was built without v4l2, or this is not Linux"
        raise CameraError(address.scrub(f"cannot be opened: {reason}"), hopeless=without) from error


def _matrix(address: Address, stream_index: int) -> bytes:
    """How a file's pictures are to be turned; cameras turn them themselves."""
    return matrix_of(f"file:{address.url}", stream_index) if address.kind == "file" else b""


def _options(address: Address) -> dict[str, str]:
    if address.kind in ("file", "device"):
        return {}
    options = {
        "protocol_whitelist": _NETWORK_PROTOCOLS,
        "analyzeduration": str(int(_ANALYZE_SECONDS[address.kind] * 1_000_000)),
        "fpsprobesize": "0",
    }
    if address.kind == "rtsp":
        options |= {
            "rtsp_transport": "udp" if address.over_udp else "tcp",
            "allowed_media_types": "video",
            "buffer_size": str(_UDP_BUFFER_BYTES),
        }
    if address.kind == "udp":
        options |= {"buffer_size": str(_UDP_BUFFER_BYTES), "overrun_nonfatal": "1"}
    if address.kind == "http":
        options |= {"live_start_index": "-1"}
    return options


def _open_error(address: Address, error: av.FFmpegError, open_seconds: float) -> CameraError:
    if isinstance(error, av.ExitError):
        return CameraError(f"cannot be opened: no answer in {open_seconds:g} s")
    if isinstance(error, av.ProtocolNotFoundError):
        scheme = address.url.partition("://")[0]
        return CameraError(
            f"cannot be opened: the FFmpeg inside this PyAV was built without {scheme}://;"
            " install a PyAV built against an FFmpeg that has it",
            hopeless=True,
        )
    if address.kind == "device" and error.errno in _DEVICE_PROBLEMS:
        return CameraError(f"cannot be opened: {_DEVICE_PROBLEMS[error.errno]}")
    refused = isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError))
    reason = error.strerror or type(error).__name__
    return CameraError(address.scrub(f"cannot be opened: {reason}"), refused=refused)


def picture_size(address: Address) -> tuple[int, int] | None:
    """(height, width) of a file's first picture, upright; None if it has none or cannot be read."""
    try:
        connection = Connection(address, 10.0, 10.0)
    except CameraError:
        return None
    try:
        for packet, arrived in connection.packets(lambda seconds: None):
            for frame, _ in connection.decode(packet, arrived)[0]:
                return PlaneConverter(frame).size_hw
    except (CameraError, ValueError):
        pass
    finally:
        connection.close()
    return None


def has_protocol(scheme: str) -> bool:
    """Whether the FFmpeg inside PyAV speaks a protocol; nothing is opened."""
    try:
        av.open(f"{scheme}://", timeout=(0.5, 0.5)).close()
    except av.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, OSError, ValueError):
        return True
    return True
