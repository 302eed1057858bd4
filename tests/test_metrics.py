"""What a run tells of itself: metrics by one list of names, traces, and Ray's export of the same."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import EndOfStream, FrameBatch, Gap
from pipeline.live.delivery import Frame
from pipeline.live.hub import Shown
from pipeline.live.labeller import Labelled
from pipeline.live.metering import LiveMeter
from pipeline.metrics.catalog import CATALOG, Instrument
from pipeline.metrics.measure import OTHERS, RunMeter, StreamNames
from pipeline.metrics.meters import PrometheusMeters
from pipeline.metrics.observer import Observer
from pipeline.metrics.server import MetricsServer, parse_place
from pipeline.run import Plan, RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.sources import Source
from pipeline.stages import Progress, SourceReport, drain, make_segmenter, timed
from pipeline.view.metrics import ViewerCounts, metrics_text
from pipeline.work import Step, Stretch, Work
from tests import media
from tests.streams import batches, frame_pixels, stream_info

FRAMES = 21


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[f"roadmask_{name}", tuple(sorted(labels.items()))]


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def work(stream: str = "a", **changed: Any) -> Work:
    step = Step(Stretch(101.0, 0.25), Stretch(101.25, 0.8), streams=2, waiting=3,
                device_bytes=(6, 10))  # fmt: skip
    given: dict[str, Any] = {
        "stream_id": stream, "frame_index": 8, "frames": 4, "decode": Stretch(100.0, 0.02),
        "step": step, "write": Stretch(102.1, 0.04), "latency_seconds": (0.03, 0.3, 0.3, 20.0),
        "resets": 1,
    }  # fmt: skip
    return Work(**given | changed)


# One list of names.


def test_the_catalogue_is_sound() -> None:
    names = [name for found in CATALOG.values() for name in found.series_names]
    assert len(names) == len(set(names))
    for name, instrument in CATALOG.items():
        assert name == instrument.name
        assert not name.endswith("_total"), "Prometheus adds it"
        assert list(instrument.buckets) == sorted(instrument.buckets)
    with pytest.raises(ValueError, match="buckets"):
        Instrument("x", "histogram", "without them")


def test_figures_of_a_batch() -> None:
    meters = PrometheusMeters()
    meter = RunMeter(meters)
    meter.begin(3)
    meter.update(Progress("a", 12, 20, work()))
    meter.update(Progress("b", 8, 20))  # where a run goes on, nothing was done
    follower = Step(Stretch(101.0, 0.25), Stretch(101.25, 0.8), streams=2, leads=False)
    meter.update(Progress("b", 12, 20, work("b", step=follower, resets=0)))
    meter.update(SourceReport("a", "a.mp4", 20))
    meter.update(SourceReport("b", "b.mp4", error="b.mp4: gone"))
    text = meters.text()
    for stream in "ab":
        for stage in ("decode", "network", "write"):
            assert value(text, "frames_total", stream=stream, stage=stage) == 4
    # A frame's part of a batch of four; of the engine's step, shared by two streams, an eighth.
    assert value(text, "stage_seconds_sum", stage="decode") == pytest.approx(2 * 0.02)
    assert value(text, "stage_seconds_sum", stage="wait") == pytest.approx(2 * 0.25)
    assert value(text, "stage_seconds_sum", stage="network") == pytest.approx(2 * 0.4)
    assert value(text, "stage_seconds_count", stage="network") == 8
    assert value(text, "stage_seconds_bucket", stage="network", le="0.1") == 8
    assert value(text, "stage_seconds_bucket", stage="network", le="0.05") == 0
    # The step itself counts once, for both.
    assert value(text, "engine_step_seconds_count") == 1
    assert value(text, "engine_step_seconds_sum") == pytest.approx(0.8)
    assert value(text, "engine_step_streams_sum") == 2
    assert value(text, "latency_seconds_bucket", stream="a", le="0.3") == 3
    assert value(text, "latency_seconds_count", stream="a") == 4
    assert value(text, "state_resets_total", stream="a") == 1
    assert value(text, "device_memory_bytes", kind="used") == 6
    assert value(text, "device_memory_bytes", kind="total") == 10
    assert value(text, "sources_total", outcome="done") == 1
    assert value(text, "sources_total", outcome="failed") == 1
    assert value(text, "sources_left") == 1
    assert not [name for name, _ in samples(text) if name.endswith("_created")]


def test_streams_beyond_the_first_share_a_name() -> None:
    names = StreamNames(most=2)
    assert [names(stream) for stream in "abcab"] == ["a", "b", OTHERS, "a", "b"]


def test_an_unknown_name_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        PrometheusMeters().add("nonesuch")


# What the stages measure.


def test_decoding_is_timed_and_everything_else_passes() -> None:
    stream = stream_info("s")
    closed: list[bool] = []

    def decode() -> Iterator[Any]:
        try:
            yield from batches(stream, frame_pixels(1, 6), 4)
        finally:
            closed.append(True)

    items = list(timed(decode()))
    assert [type(item) for item in items] == [FrameBatch, FrameBatch, EndOfStream]
    assert all(item.decode.seconds > 0 for item in items[:2])
    half_way = timed(decode())
    next(half_way)
    half_way.close()
    assert closed == [True, True]


def test_a_reset_is_counted_where_the_memory_began_anew(tmp_path: Path) -> None:
    media.write_moving_clip(tmp_path / "clip.mp4", 8, seed=1)
    job = plan_of(tmp_path, ["clip.mp4"], labels="none").job
    stream = stream_info("clip")
    first, second = batches(stream, frame_pixels(1, 8), 4, end=False)
    items = [first, Gap(stream, 4, None, "another scene"), second, EndOfStream(stream, 8)]
    labels = make_segmenter(job).labels(iter(items))
    events = list(drain(job, Source("clip", "clip.mp4", "video", ()), labels))
    done = [event.work for event in events if isinstance(event, Progress) and event.work]
    assert [(one.frame_index, one.frames, one.resets) for one in done] == [(0, 4, 0), (4, 4, 1)]
    assert done[0].decode is None
    assert all(one.step is not None and one.step.run.seconds > 0 for one in done)
    assert all(len(one.latency_seconds) == 4 for one in done)


def plan_of(tmp_path: Path, names: list[str], labels: str = "none", **settings: Any) -> Plan:
    plan = prepare(
        RunConfig(
            tuple(str(tmp_path / name) for name in names), tmp_path / "out",
            OutputOptions(labels=labels, color=False), engine="counting", **settings,
        )
    )  # fmt: skip
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize("placement", ["inline", "fused", "spread"])
def test_every_frame_is_counted_wherever_stages_run(tmp_path: Path, placement: str) -> None:
    names = [f"clip{number}.mp4" for number in range(3)]
    for number, name in enumerate(names):
        media.write_moving_clip(tmp_path / name, FRAMES + number, seed=number)
    plan = plan_of(tmp_path, [*names, "nonesuch.mp4"], placement=placement)
    said: list[str] = []
    with Observer(lambda: plan.count, None, "127.0.0.1:0", say=said.append) as observer:
        for event in run(plan):
            observer.update(event)
        observer.ended(False)
        base = said[0].split()[-1].removesuffix("/metrics")
        text, status = fetch(f"{base}/metrics"), json.loads(fetch(f"{base}/status"))
        assert json.loads(fetch(f"{base}/healthz")) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{base}/etc/passwd")
    for number in range(3):
        for stage in ("decode", "network", "write"):
            labels = {"stream": f"clip{number}", "stage": stage}
            assert value(text, "frames_total", **labels) == FRAMES + number
    frames = 3 * FRAMES + 3
    for stage in ("decode", "wait", "network", "write"):
        assert value(text, "stage_seconds_count", stage=stage) == frames
        assert value(text, "stage_seconds_sum", stage=stage) >= 0
    steps = value(text, "engine_step_streams_sum")
    assert steps == sum(-(-(FRAMES + number) // 8) for number in range(3))  # batches of 8
    assert value(text, "sources_total", outcome="done") == 3
    assert value(text, "sources_total", outcome="failed") == 1
    assert value(text, "sources_left") == 0
    assert (status["state"], status["frames"], status["failed"]) == ("failed", frames, 1)


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    assert parse_place("9400") == ("127.0.0.1", 9400)
    assert parse_place("[::1]:9400") == ("::1", 9400)
    for wrong in ("nonsense", "host:", "1.2.3.4:99999", ""):
        with pytest.raises(ConfigError, match="--metrics must be"):
            parse_place(wrong)
    server = MetricsServer("127.0.0.1", 0, bytes, dict)
    try:
        with pytest.raises(ConfigError, match="give another address or port"):
            MetricsServer("127.0.0.1", int(server.url.rpartition(":")[2]), bytes, dict)
    finally:
        server.close()


# Live.


def labelled(camera: str, began_at: float, ended_at: float) -> Labelled:
    planes = np.zeros((48, 32), np.uint8)
    shown = Shown(camera, 0, 10.0, ended_at, planes, np.zeros((32, 32), np.uint8))
    frame = Frame(0, 10.0, 0, (32, 32), planes, decoded_at=10.01)
    return Labelled(shown, frame, np.zeros(2, np.float32), False, began_at, lambda: (planes, 1))


def test_frames_of_one_live_step_share_it() -> None:
    meters = PrometheusMeters()
    meter = LiveMeter(meters)
    for camera in ("front", "rear", "left"):
        meter.labelled(labelled(camera, 10.05, 10.11))
    meter.labelled(labelled("front", 10.2, 10.25))  # the next step: now the first is told of
    text = metrics_text([], [], ViewerCounts(), meters)
    assert value(text, "engine_step_seconds_count") == 1
    assert value(text, "engine_step_seconds_sum") == pytest.approx(0.06)
    assert value(text, "engine_step_streams_sum") == 3
    assert value(text, "stage_seconds_sum", stage="network") == pytest.approx(0.06)
    assert value(text, "stage_seconds_sum", stage="decode") == pytest.approx(4 * 0.01)
    assert value(text, "stage_seconds_sum", stage="wait") == pytest.approx(3 * 0.04 + 0.19)
    assert value(text, "latency_seconds_count", stream="front") == 2
    assert value(text, "latency_seconds_sum", stream="rear") == pytest.approx(0.11)
    assert value(text, "viewers") == 0


# Ray's export: the same names, which Ray puts `ray_` before.


def test_ray_is_told_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.metrics import on_ray

    told: list[tuple[str, dict[str, str]]] = []

    def listen(kind: str, method: str) -> None:
        real = getattr(getattr(on_ray.metrics, kind), method)

        def spy(self: Any, amount: float, tags: dict[str, str]) -> None:
            told.append((self.info["name"], tags))
            real(self, amount, tags)  # Ray checks names, labels and values

        monkeypatch.setattr(getattr(on_ray.metrics, kind), method, spy)

    listen("Counter", "inc")
    listen("Gauge", "set")
    listen("Histogram", "observe")
    events = [Progress("a", 12, 20, work()), Progress("a", 16, 20, work(resets=0))]
    assert list(on_ray.told(iter(events))) == events
    prometheus = PrometheusMeters()
    for event in events:
        RunMeter(prometheus).update(event)
    ours = {name.rsplit("_bucket", 1)[0] for name, _ in samples(prometheus.text())}
    ours = {name for name in ours if not name.endswith(("_sum", "_count"))}
    assert {name for name, _ in told} == ours
    assert ("roadmask_frames_total", {"stream": "a", "stage": "decode"}) in told


# Traces.


def check_spans(spans: list[SimpleNamespace]) -> None:
    """One batch with its four stages below it, at the times that were measured."""
    batch = next(span for span in spans if span.name == "batch")
    stages = {span.name: span for span in spans if span.parent == batch.id}
    assert list(stages) == ["decode", "wait", "network", "write"]
    assert batch.attributes == {"stream": "a", "frame": 8, "frames": 4}
    assert (batch.began, batch.ended) == pytest.approx((100.0, 102.14))
    network = stages["network"]
    assert (network.began, network.ended) == pytest.approx((101.25, 102.05))
    assert network.attributes == {"stream": "a", "frame": 8, "streams": 2}
    source = next(span for span in spans if span.name == "source")
    assert source.attributes == {"stream": "a", "frames": 20, "error": ""}


def test_traces_in_a_file(tmp_path: Path) -> None:
    from datetime import datetime

    path = tmp_path / "trace.jsonl"
    with Observer(lambda: 1, None, trace=str(path)) as observer:
        observer.update(Progress("a", 12, 20, work()))
        observer.update(SourceReport("a", "a.mp4", 20))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    check_spans(
        [
            SimpleNamespace(
                name=span["name"], id=span["context"]["span_id"], parent=span["parent_id"],
                attributes=span["attributes"],
                began=datetime.fromisoformat(span["start_time"]).timestamp(),
                ended=datetime.fromisoformat(span["end_time"]).timestamp(),
            )
            for span in found
        ]
    )  # fmt: skip


def test_traces_to_a_collector() -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[tuple[str, bytes, str]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append((self.path, body, self.headers.get("Content-Encoding", "")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        target = f"http://127.0.0.1:{server.server_port}"
        with Observer(lambda: 1, None, trace=target) as observer:
            observer.update(Progress("a", 12, 20, work()))
            observer.update(SourceReport("a", "a.mp4", 20))
    finally:
        server.shutdown()
        server.server_close()
    assert [(path, encoding) for path, _, encoding in bodies] == [("/v1/traces", "")]
    request = ExportTraceServiceRequest.FromString(bodies[0][1])
    spans = request.resource_spans[0].scope_spans[0].spans

    def plain(any_value: Any) -> Any:
        return getattr(any_value, any_value.WhichOneof("value"))

    check_spans(
        [
            SimpleNamespace(
                name=span.name, id=span.span_id, parent=span.parent_span_id,
                attributes={pair.key: plain(pair.value) for pair in span.attributes},
                began=span.start_time_unix_nano / 1e9, ended=span.end_time_unix_nano / 1e9,
            )
            for span in spans
        ]
    )  # fmt: skip


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        Observer(lambda: 1, None, trace=str(tmp_path / "none" / "trace.jsonl"))
