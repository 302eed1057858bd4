"""A real RTSP server for tests, GStreamer's. Debian's Python runs it, which has its bindings:

    /usr/bin/python3 tests/rtsp_server.py PORT '[{"path": "/a", "size_wh": [160, 96], "fps": 5}]' [ADDRESS]

A camera's frames carry their number, from 0 at the server's start, as sixteen squares along their upper
half, dark for 0 and bright for 1, the lowest bit on the left. With "frames": FILE it shows the I420 frames
of a file instead, again and again. With "kind": "garbage" it sends packets that no decoder can make
anything of. The server says `ready PORT` once it listens, and takes commands on standard input: `size PATH
WIDTH HEIGHT` has a camera go on with frames of another size, and `drop` hangs up on all clients.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS = 16
DARK, GREY, BRIGHT = 40, 110, 200
RAW = "video/x-raw,format=I420,width={0},height={1},framerate={2}/1"
PIPELINE = (
    "( appsrc name=frames is-live=true format=time do-timestamp=true ! videoconvert ! x264enc"
    " tune=zerolatency speed-preset=ultrafast threads=1 key-int-max={0} bitrate=2000"
    " ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)
GARBAGE = (
    "( appsrc name=frames is-live=true format=time do-timestamp=true"
    " caps=video/x-h264,stream-format=byte-stream,alignment=au"
    " ! rtph264pay name=pay0 pt=96 )"
)


class TestCamera(GstRtspServer.RTSPMediaFactory):
    """One camera; all its clients see the same frames."""

    def __init__(self, size_wh: list[int], fps: int, kind: str, frames: str = "") -> None:
        super().__init__()
        self.size_wh, self.fps, self.kind = list(size_wh), fps, kind
        self.frames = pathlib.Path(frames).read_bytes() if frames else b""
        self.number = 0
        self.random = random.Random(1)
        self.set_shared(True)
        self.set_launch(GARBAGE if kind == "garbage" else PIPELINE.format(fps))

    def wire(self, media: Any) -> None:
        frames = media.get_element().get_child_by_name("frames")
        shown = {"size_wh": None}
        timer = GLib.timeout_add(1000 // self.fps, self.push, frames, shown)
        media.connect("unprepared", lambda _: GLib.source_remove(timer))

    def push(self, frames: Any, shown: dict[str, Any]) -> bool:
        if self.kind == "garbage":
            frames.emit("push-buffer", Gst.Buffer.new_wrapped(self.garbage()))
            return True
        if shown["size_wh"] != self.size_wh:
            shown["size_wh"] = list(self.size_wh)
            frames.set_property("caps", Gst.Caps.from_string(RAW.format(*self.size_wh, self.fps)))
        frames.emit("push-buffer", Gst.Buffer.new_wrapped(self.picture()))
        self.number += 1
        return True

    def picture(self) -> bytes:
        width, height = self.size_wh
        if not self.frames:
            return numbered(width, height, self.number)
        size = width * height * 3 // 2
        at = self.number * size % len(self.frames)
        return self.frames[at : at + size]

    def garbage(self) -> bytes:
        nal_type = self.random.choice((1, 5, 7, 8))
        return b"\0\0\0\1" + bytes([0x60 | nal_type]) + self.random.randbytes(400)


def numbered(width: int, height: int, number: int) -> bytes:
    """An I420 frame that carries a number."""
    square = width // BITS
    row = bytearray([GREY]) * width
    for bit in range(BITS):
        level = BRIGHT if number >> bit & 1 else DARK
        row[bit * square : (bit + 1) * square] = bytes([level]) * square
    upper, lower = height // 2, height - height // 2
    luma = bytes(row) * upper + bytes([GREY]) * (width * lower)
    return luma + bytes([128]) * (2 * ((width + 1) // 2) * ((height + 1) // 2))


def main() -> None:
    Gst.init(None)
    port, mounts = sys.argv[1], json.loads(sys.argv[2])
    server = GstRtspServer.RTSPServer()
    server.set_address(sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1")
    server.set_service(port)
    cameras = {}
    for mount in mounts:
        camera = TestCamera(
            mount["size_wh"], mount["fps"], mount.get("kind", "numbered"), mount.get("frames", "")
        )
        camera.connect("media-configure", lambda camera, media: camera.wire(media))
        cameras[mount["path"]] = camera
        server.get_mount_points().add_factory(mount["path"], camera)

    def command(channel: Any, condition: Any) -> bool:
        words = sys.stdin.readline().split()
        if not words:
            loop.quit()
            return False
        if words[0] == "drop":
            server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)
        else:
            cameras[words[1]].size_wh = [int(words[2]), int(words[3])]
        return True

    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin, GLib.IO_IN | GLib.IO_HUP, command)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print(f"ready {server.get_bound_port()}", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
