"""Sessions: cameras recorded as they came, beside the labels that were shown, and played again.

    recorder = Recorder(folder, Configuration(...), Limits(max_bytes=100 * 10**9))
    camera = recorder.camera("front")               # never blocks: a thread of its own writes
    parameters = StreamParameters.of(stream)        # of the opened av stream, before its first packet
    decoder = parameters.open_decoder()             # decode with this: a replay decodes alike
    connection = camera.connected(parameters)       # anew after every reconnect
    camera.packet(data, pts=..., dts=..., key=..., arrived_at=...)  # or av_packet(packet, ...)
    camera.state("reconnecting", "no packet for 10 s")              # every change of state
    camera.gap(2.0, "the camera was silent")
    camera.labels(ShownLabels(connection, frame_index, pts, captured_at, labels, reset))
    if camera.wants_checkpoint:                     # after `labels`: the state that gave them
        camera.checkpoint(state, steps)             # as the engine's `read_state` gives it
    camera.dropped(connection, 3, "overload")       # frames not labelled
    recorder.close()

A replay finds the frame of a label map by its connection and the decoded frame's own `pts`, labels exactly
those frames, and resets the memory exactly where `reset` says so. A packet that the decoder did not get is
given with `decoded=False` where that is known; what was left out up to a key frame does not matter.

Packets and labels may be written by two processes: a `Recorder` can be pickled, and each process uses the
camera of its own copy for what it has. The format is described in `pipeline/SESSION.md`.
"""

from __future__ import annotations

from pipeline.session.format import Configuration, Limits, ShownLabels
from pipeline.session.recorder import CameraRecorder, Recorder
from pipeline.session.stream import StreamParameters

__all__ = [
    "CameraRecorder",
    "Configuration",
    "Limits",
    "Recorder",
    "ShownLabels",
    "StreamParameters",
]
