"""A job's sources, ledger, retries and spans, without a cluster: everything in this process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from models.registry import save
from pipeline.cluster.catalogue import Catalogue
from pipeline.cluster.errands import Cut, FarJob, FarReport, Join, Span
from pipeline.cluster.feed import Retried
from pipeline.cluster.hands import Builder
from pipeline.cluster.ledger import Ledger, Lock
from pipeline.cluster.listing import Listed, listed, tree_sources
from pipeline.cluster.nodes import Answer, Node, Question, look_around
from pipeline.cluster.plan import FarPlan
from pipeline.cluster.spans import COMPARED_FRAMES, WARM_UP_FRAMES, cut
from pipeline.cluster.storage import Entry, UnreachableError
from pipeline.config import whereto
from pipeline.engines import EngineChoice
from pipeline.errors import ConfigError, OutputError, PipelineError, SourceNotFoundError
from pipeline.frames import Mark
from pipeline.journal import Journal, Record
from pipeline.metrics.measure import MOST_NAMED, OTHERS
from pipeline.progress import Meter
from pipeline.run import RunConfig, model_files, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.sources import Source
from pipeline.stages import Job, Progress, SourceReport
from pipeline.versions import versions
from pipeline.work import Stretch, Work
from tests import media
from tests.bench.chaos import contents
from tests.bench.cluster import measure_listing
from tests.networks import made, spec_of
from tests.test_run import read_labels, roadmask

FRAMES = 21


class Ears:
    """Hears what a job tells its user."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.sources = 0
        self.share = 0.0

    def begin(self, sources: int) -> None:
        self.sources = sources

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def say(self, line: str) -> None:
        pass

    def far(self, share: float) -> None:
        self.share = share


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.feed.FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.cluster.storage.FIRST_PAUSE_SECONDS", 0.0)


def far_run(
    sources: list[str], out: Path | str, ears: Ears | None = None, **settings: object
) -> dict[str, SourceReport]:
    """Run a job in this process; a source that is far away, or might be, makes it one."""
    config = RunConfig(
        tuple(sources), options=OutputOptions(), engine="counting", size_hw=(96, 128),
        placement="inline", **whereto(str(out)), **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    plan = prepare(config)
    assert isinstance(plan, FarPlan)
    return {e.stream_id: e for e in run(plan, teller=ears) if isinstance(e, SourceReport)}


def make_tree(root: Path) -> None:
    for name in ("b/2.mp4", "a/10.mp4", "a/9.mp4", "top.mp4", "a/.hidden.mp4", ".git/x.mp4", "a/n.txt",
                 "pics/1.png", "pics/2.png"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names(texts: list[str]) -> list[str]:
    return [item.source.stream_id for item in listed(texts) if isinstance(item, Listed)]


def test_names_are_paths_below_what_the_pattern_holds_fixed(tmp_path: Path) -> None:
    make_tree(tmp_path)
    assert names([f"{tmp_path}/**/*.mp4"]) == ["top", "a/9", "a/10", "b/2"]
    assert names([f"{tmp_path}/*/*.mp4"]) == ["a/9", "a/10", "b/2"]
    assert names([f"{tmp_path}/a/*0.mp4"]) == ["10"]
    assert names([f"{tmp_path}/**"]) == ["top", "a/9", "a/10", "b/2", "pics"]
    assert names([str(tmp_path / "a")]) == ["9", "10"]
    assert names([str(tmp_path / "b" / "2.mp4")]) == ["2"]
    found = [item for item in listed([f"{tmp_path}/pics/*.png"]) if isinstance(item, Listed)]
    assert [len(item.source.files) for item in found] == [2]
    assert found[0].source.kind == "images"


def test_what_names_nothing_says_so(tmp_path: Path) -> None:
    make_tree(tmp_path)
    texts = [
        f"{tmp_path}/none/**/*.mp4",
        str(tmp_path / "gone.mp4"),
        f"{tmp_path}/a/*.txt",
        "s4://x/y",
    ]
    found = list(listed(texts))
    kinds = (SourceNotFoundError, SourceNotFoundError, SourceNotFoundError, ConfigError)
    for item, text, kind in zip(found, texts, kinds, strict=True):
        assert not isinstance(item, Listed)
        assert item[0] == text
        assert isinstance(item[1], kind), item


def test_a_folder_that_cannot_be_listed_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of; what a pattern asks for in vain in one folder is no error."""
    make_tree(tmp_path)
    (tmp_path / "b" / "loop").symlink_to("loop")
    locked, scan = str(tmp_path / "a"), os.scandir

    def scandir(folder: str) -> object:
        if folder == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("pipeline.cluster.listing.os.scandir", scandir)
    text = f"{tmp_path}/**/*.mp4"
    top, failure, other = listed([text])
    assert [item.source.stream_id for item in (top, other) if isinstance(item, Listed)] == [
        "top", "b/2",
    ]  # fmt: skip
    assert not isinstance(failure, Listed)
    assert (failure[0], str(failure[1])) == (text, f"{locked}: cannot be listed: Permission denied")
    assert names([f"{tmp_path}/*/2.mp4"]) == ["b/2"]
    (tmp_path / "b" / "front").mkdir()
    (tmp_path / "b" / "front" / "3.mp4").write_bytes(b"x")
    assert names([f"{tmp_path}/*/front/*.mp4"]) == ["b/front/3"]


def test_a_bucket_that_is_away_is_not_asked_for_every_folder() -> None:
    class Away:
        asked = 0

        def look(self, folder: str) -> tuple[list[Entry], list[str]]:
            self.asked += 1
            if folder != "s3://x":
                raise UnreachableError(f"{folder}: cannot be reached")
            return [], [f"{folder}/{number}" for number in range(5)]

        def place(self, folder: str) -> str:
            return folder

    tree = Away()
    with pytest.raises(UnreachableError, match="s3://x/0: cannot be reached"):
        list(tree_sources(tree, "s3://x", ["**", "*.mp4"], "s3://x/**/*.mp4"))
    assert tree.asked == 2


def test_links_that_lead_round_are_followed_once(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    assert names([f"{tmp_path}/**/*.mp4"]) == [
        "top",
        "a/9",
        "a/10",
        "b/2",
        "b/other/9",
        "b/other/10",
    ]
    assert names([f"{tmp_path}/a/*/*.mp4"]) == ["up/top"]  # a pattern with an end has it


def test_the_same_file_is_one_source_and_the_same_name_two(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mkv", "CLIP.avi", "other.mp4"):
        (tmp_path / name).write_bytes(b"x")
    with Catalogue() as catalogue:
        texts = [str(tmp_path), f"{tmp_path}/*.mp4", str(tmp_path / "clip.mp4")]
        catalogue.fill(item for item in listed(texts) if isinstance(item, Listed))
        found = {uri.rpartition("/")[2]: name for name, uri in catalogue.all_sources()}
    assert found == {
        "clip.mp4": "clip_mp4", "clip.mkv": "clip_mkv", "CLIP.avi": "CLIP_avi", "other.mp4": "other",
    }  # fmt: skip


def some_sources(count: int) -> Iterator[Listed]:
    for number in range(count):
        yield Listed(Source(f"s{number}", f"/in/s{number}.mp4"), "/in", 100 - number, f"v{number}")


@contextmanager
def retried(
    folder: Path,
    job: Job,
    sources: Iterable[Listed],
    tries: int = 3,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Retried, Catalogue]]:
    """A feed of these sources with a ledger in a folder, and its catalogue."""
    with Catalogue() as catalogue, closing(Ledger(str(folder), anew=True)) as ledger:
        catalogue.fill(sources)
        yield Retried(job, catalogue, ledger, tries, tell), catalogue


@pytest.fixture
def a_job(tmp_path: Path) -> Job:
    choice = EngineChoice("counting", "NumPy", "asked for")
    return Job(tmp_path, OutputOptions(), "roadnet", choice)


@pytest.mark.usefixtures("no_pauses")
def test_a_source_is_tried_again_and_then_put_aside(tmp_path: Path, a_job: Job) -> None:
    told: list[str] = []
    with Catalogue() as catalogue:
        catalogue.fill(some_sources(3))
        feed = Retried(a_job, catalogue, Ledger(str(tmp_path), anew=True), 3, told.append)
        reports: list[SourceReport] = []
        order: list[str] = []
        while (work := feed.take(())) is not None:
            name = work.source.stream_id
            order.append(name)
            once = name == "s2" and order.count("s2") == 1
            error = "broken" if name == "s1" or once else None
            reports += feed.reported(work, SourceReport(name, name, 5, error=error))
        counts = catalogue.counts()
        assert catalogue.failures(10) == [
            {"id": "s1", "source": "/in/s1.mp4", "tries": 3, "error": "broken"}
        ]
    assert order[0] == "s0"  # the largest first
    assert (order.count("s0"), order.count("s1"), order.count("s2")) == (1, 3, 2)
    assert {r.stream_id: r.error for r in reports} == {
        "s0": None, "s2": None, "s1": "broken; put aside after 3 tries",
    }  # fmt: skip
    assert (counts.done, counts.quarantined, counts.frames) == (2, 1, 10)
    assert len(told) == 3


@pytest.mark.usefixtures("no_pauses")
def test_a_clock_that_is_set_back_delays_no_try(
    tmp_path: Path, a_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with retried(tmp_path, a_job, some_sources(1)) as (feed, _):
        work = feed.take(())
        assert work is not None
        assert list(feed.reported(work, SourceReport("s0", "s0", error="broken"))) == []
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert feed.take(()) is not None


def test_what_no_try_can_mend_is_not_tried_again(tmp_path: Path, a_job: Job) -> None:
    with Catalogue() as catalogue:
        catalogue.fill(some_sources(2))
        feed = Retried(a_job, catalogue, Ledger(str(tmp_path), anew=True), 3, lambda line: None)
        first, second = feed.take(()), feed.take(())
        assert first is not None
        assert second is not None
        hopeless = FarReport("s0", "s0", error="other model", again=False)
        assert [r.error for r in feed.reported(first, hopeless)] == ["other model"]
        fatal = FarReport("s1", "s1", error="credentials", fatal=True)
        assert list(feed.reported(second, fatal)) == []
        assert feed.fatal == "credentials"
        assert (feed.pending(), feed.take(())) == (0, None)
        assert catalogue.counts().left == 1  # nothing is lost: --resume does it


@pytest.mark.usefixtures("no_pauses")
def test_a_source_of_a_node_that_was_cut_off_waits_for_it(tmp_path: Path, a_job: Job) -> None:
    """The node may hold the source's folder for a while: that is no failure of the source."""
    with retried(tmp_path, a_job, some_sources(1), tries=1) as (feed, _):
        work = feed.take(())
        assert work is not None
        assert list(feed.lost(work)) == []
        held = SourceReport("s0", "s0", error="another run is writing to /out/s0: wait for it")
        for _ in range(5):
            work = feed.take(())
            assert work is not None
            assert list(feed.reported(work, held)) == []
        work = feed.take(())
        assert work is not None
        assert [r.error for r in feed.reported(work, SourceReport("s0", "s0", 5))] == [None]
        assert feed.pending() == 0


SPANS = tuple(Span(n, 10 * n, 0, 0, tuple(range(10 * n, 10 * n + 10)), None) for n in range(2))


def test_parts_go_only_to_who_sees_the_source(tmp_path: Path, a_job: Job) -> None:
    there = Listed(Source("there", "/there/long.mp4"), "/there", 200, "v")
    with retried(tmp_path, a_job, [there, *some_sources(2)]) as (feed, _):
        begun, also = feed.take(()), feed.take(())
        assert begun is not None
        assert also is not None
        feed.cut(begun, Cut("there", SPANS))
        feed.cut(also, Cut("s0", SPANS))
        found = [feed.take(["/there"]) for _ in range(4)]
        assert [work and (work.source.stream_id, work.part) for work in found] == [
            ("s0", SPANS[0]), ("s0", SPANS[1]), ("s1", None), None,
        ]  # fmt: skip
        assert feed.pending() == 2
        spans = [feed.take(()) for _ in SPANS]
        for work in spans:
            assert work is not None
            list(feed.reported(work, SourceReport("there", "x", 10)))
        assert feed.take(["/there"]) is None
        joined = feed.take(["/elsewhere"])
        assert joined is not None
        assert joined.part == Join((0, 10))


def test_nothing_begins_after_a_stop(tmp_path: Path, a_job: Job) -> None:
    """Whatever comes back from workers then: it waits for --resume."""
    told: list[str] = []
    broken = SourceReport("x", "x", error="broken")
    with retried(tmp_path, a_job, some_sources(5), tell=told.append) as (feed, catalogue):
        taken = [feed.take(()) for _ in range(5)]
        failed, lost, cut, split, last = [work for work in taken if work is not None]
        feed.cut(split, Cut("s3", SPANS))
        spans = [feed.take(()) for _ in SPANS]
        feed.stop()
        assert list(feed.reported(failed, broken)) == []
        assert list(feed.lost(lost)) == []
        feed.cut(cut, Cut("s2", SPANS))
        for work in spans:
            assert work is not None
            assert list(feed.reported(work, SourceReport("s3", "x", 10))) == []
        assert [r.error for r in feed.reported(last, SourceReport("s4", "x", 5))] == [None]
        assert (feed.pending(), feed.take(())) == (0, None)
        counts = catalogue.counts()
    assert (counts.done, counts.left + counts.running, feed.retries) == (1, 4, 0)
    assert told == ["broken; trying again with --resume (2 of 3)"]


def test_a_second_try_goes_on_with_the_first(tmp_path: Path, a_job: Job) -> None:
    with retried(tmp_path, a_job, some_sources(1)) as (feed, _):
        first = feed.take(())
        assert first is not None
        assert not first.restarts.resume
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.cluster.feed.FIRST_PAUSE_SECONDS", 0.0)
            list(feed.reported(first, SourceReport("s0", "x", error="not delivered")))
        second = feed.take(())
        assert second is not None
        assert second.restarts.resume


def test_a_ledger_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), anew=True)
    ledger.note({"id": "a", "state": "done", "version": "1"})
    ledger.close()
    path = tmp_path / ".roadmask" / "ledger.jsonl"
    with path.open("ab") as file:
        file.write(b'{"id": "b", "state": "do')
    again = Ledger(str(tmp_path), anew=False)
    again.note({"id": "c", "state": "done", "version": "1"})
    again.close()
    assert [record["id"] for record in again.records()] == ["a", "c"]
    assert list(Ledger(str(tmp_path), anew=True).records()) == []


def test_a_second_job_is_refused_and_a_dead_one_s_lock_is_free(tmp_path: Path) -> None:
    code = (f"import sys; from pipeline.cluster.ledger import Lock; out = {str(tmp_path)!r};"
            "lock = Lock(out).__enter__(); print('held', flush=True); sys.stdin.read()")  # fmt: skip
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                OutputError, match=rf"another job is writing to .*process {other.pid} on"
            ),
            Lock(str(tmp_path)),
        ):
            pass
        other.kill()
    with Lock(str(tmp_path)):
        pass


def test_the_meter_does_not_grow_with_the_sources() -> None:
    meter = Meter()
    for number in range(1000):
        meter.update(SourceReport(f"s{number}", "x", 5))
    assert (meter.done, meter.finished, len(meter.frames), len(meter.expected)) == (
        5000,
        1000,
        0,
        0,
    )
    meter.share = 0.5
    assert meter.seconds_left(2000) == pytest.approx(0.0, abs=5.0)


def test_the_driver_s_memory_is_flat() -> None:
    found = measure_listing(3000)
    assert found["sources"] == 3000
    assert found["growth_mb"] < 4


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of which one is broken, in folders."""
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    media.write_moving_clip(root / "one.mp4", FRAMES, seed=1)
    media.write_moving_clip(root / "b" / "two.mp4", FRAMES + 1, seed=2)
    (root / "b" / "bad.mp4").write_text("this is not a video\n" * 50)
    return root


@pytest.mark.usefixtures("no_pauses")
def test_a_job_is_resumed_and_changes_nothing_the_second_time(clips: Path, tmp_path: Path) -> None:
    out, ears = tmp_path / "out", Ears()
    source = f"file://{clips}/**/*.mp4"
    config = {"tries": 2, "address": None}
    first = _far_here(source, out, ears, **config)
    assert {n: (r.frames, bool(r.error)) for n, r in first.items()} == {
        "one": (FRAMES, False), "b/two": (FRAMES + 1, False), "b/bad": (0, True),
    }  # fmt: skip
    assert "put aside after 2 tries" in (first["b/bad"].error or "")
    assert (ears.sources, ears.share) == (3, 1.0)
    assert len(ears.warnings) == 1
    report = json.loads((out / "report.json").read_text())
    assert (report["done"], report["failed"], report["retries"]) == (2, 1, 1)
    assert [failure["id"] for failure in report["failures"]] == ["b/bad"]
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("**/labels.mkv")}
    second = _far_here(source, out, resume=True, **config)
    assert {n: (r.frames, bool(r.error)) for n, r in second.items()} == {
        "one": (FRAMES, False), "b/two": (FRAMES + 1, False), "b/bad": (0, True),
    }  # fmt: skip
    assert "--tries 3 tries it again" in (second["b/bad"].error or "")
    assert {p: p.stat().st_mtime_ns for p in out.glob("**/labels.mkv")} == stamps
    media.write_moving_clip(clips / "b" / "bad.mp4", FRAMES, seed=3)  # it has come anew
    assert _far_here(source, out, resume=True, **config)["b/bad"].error is None


def _far_here(
    source: str, out: Path, ears: Ears | None = None, **settings: object
) -> dict[str, SourceReport]:
    """A job with everything on this machine, whatever makes others go further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "far", True)
        return far_run([source], out, ears, **settings)


def test_a_job_of_another_kind_is_not_resumed(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _far_here(str(clips / "one.mp4"), out)
    with pytest.raises(ConfigError, match=r"cannot be gone on with: the split was None, is 2"):
        _far_here(str(clips / "one.mp4"), out, resume=True, split_seconds=2.0)


def test_results_that_the_ledger_does_not_know_of_are_found(clips: Path, tmp_path: Path) -> None:
    """The driver died between the manifest and the line; and results that somebody removed are made anew."""
    out, source = tmp_path / "out", f"{clips}/*.mp4"
    _far_here(source, out)
    stamp = (out / "one" / "labels.mkv").stat().st_mtime_ns
    ledger = out / ".roadmask" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines()[0] + "\n")
    report = _far_here(source, out, resume=True)["one"]
    assert report.notes == ("an earlier run has finished it",)
    assert (out / "one" / "labels.mkv").stat().st_mtime_ns == stamp
    (out / "one" / "manifest.json").unlink()
    assert _far_here(source, out, resume=True)["one"].notes == ()
    assert (out / "one" / "labels.mkv").stat().st_mtime_ns != stamp


def test_a_death_does_not_ask_for_what_another_job_has_left(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gave no --resume is not refused for results, finished or not, of other options."""
    out, source = tmp_path / "out", str(clips / "one.mp4")
    _far_here(source, out)
    stamp = (out / "one" / "labels.mkv").stat().st_mtime_ns
    monkeypatch.setattr("pipeline.restarts.Restarts.resume", True)  # as after a death
    report = _far_here(source, out, tries=1, split_seconds=60.0)["one"]
    assert (report.error, report.frames, report.notes) == (None, FRAMES, ())
    assert (out / "one" / "labels.mkv").stat().st_mtime_ns != stamp
    with Journal(out / "one", {"the model": "another"}, resume=False) as journal:
        journal.commit(Record(journal.identity, Mark(8, {}), {}, "now"))
    assert _far_here(source, out, tries=1, split_seconds=60.0)["one"].error is None
    (out / ".roadmask" / "ledger.jsonl").unlink()
    refused = _far_here(source, out, resume=True)["one"]
    assert "cannot be gone on with: the split was 60.0, is None" in (refused.error or "")


def test_a_source_is_not_overwritten_by_a_job(clips: Path, tmp_path: Path) -> None:
    clip = tmp_path / "out" / "one" / "one.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes((clips / "one.mp4").read_bytes())
    report = _far_here(str(clip), tmp_path / "out")["one"]
    assert "where it lies itself" in (report.error or "")
    assert list(clip.parent.iterdir()) == [clip]


LONG = 620  # frames at 30 a second; a key frame at each 30th


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long clip with B-frames, a key frame a second, and sound."""
    folder = tmp_path_factory.mktemp("long")
    clip = folder / "long.mp4"
    media.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=128x96:rate=30", "-f", "lavfi", "-i",
                 "sine=frequency=440", "-frames:v", LONG, "-shortest", "-c:v", "libx264", "-g", 30,
                 "-keyint_min", 30, "-sc_threshold", 0, "-bf", 2, "-pix_fmt", "yuv420p", "-c:a", "aac",
                 clip)  # fmt: skip
    return clip


def test_spans_are_the_whole_file_once_and_begin_at_key_frames(long: Path, a_job: Job) -> None:
    job = FarJob(**vars(a_job), split_seconds=5.0)
    found = cut(job, Source("long", str(long)))
    assert found is not None
    assert len(found.spans) == 4
    kept = [
        s
        for span in found.spans
        for s in span.stamps[span.warm :][: len(span.stamps) - span.warm - span.beyond]
    ]
    with av.open(str(long)) as container:
        assert kept == [frame.pts for frame in container.decode(video=0)]
    for span, after in pairwise(found.spans):
        assert after.begin % 30 == 0
        assert after.warm == min(WARM_UP_FRAMES, after.begin)
        assert after.key is not None
        assert after.key.pts <= after.stamps[0]
        assert span.stamps[-span.beyond :] == after.stamps[after.warm :][:COMPARED_FRAMES]
    assert cut(FarJob(**vars(a_job), split_seconds=60.0), Source("long", str(long))) is None


@pytest.mark.parametrize("overlay", [False, True])
def test_a_split_source_is_whole_again(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlay: bool
) -> None:
    """Every frame once, in order and with its stamp; of each span the state began at its warm-up."""
    monkeypatch.setattr("pipeline.cluster.joining.LEAST_AGREEMENT", 0.0)  # a count never agrees
    out, whole = tmp_path / "split", tmp_path / "whole"
    options = OutputOptions(overlay=overlay)
    assert _split(long, out, 5.0, options)[0].frames == LONG
    assert _split(long, whole, None, options)[0].frames == LONG
    manifest = json.loads((out / "long" / "manifest.json").read_text())
    assert "labelled in 4 spans" in manifest["notes"]
    assert not list((out / ".roadmask" / "spans").glob("*"))
    assert contents(out).keys() == contents(whole).keys()
    labels = read_labels(out / "long" / "labels.mkv")[:, -1, -1].astype(int)
    seams = [i for i in range(1, LONG) if labels[i] != (labels[i - 1] + 1) % 251]
    assert len(seams) == 3
    assert [labels[seam] for seam in seams] == [min(WARM_UP_FRAMES, seam) + 1 for seam in seams]
    for name in ("color.mp4", *(["overlay.mp4"] if overlay else [])):
        with av.open(str(out / "long" / name)) as a, av.open(str(whole / "long" / name)) as b:
            stamps = [[f.pts for f in c.decode(video=0)] for c in (a, b)]
            assert stamps[0] == stamps[1]
            assert len(a.streams.audio) == len(b.streams.audio) == int(name == "overlay.mp4")


def _split(
    clip: Path,
    out: Path,
    seconds: float | None,
    options: OutputOptions,
    ears: Ears | None = None,
    **settings: object,
) -> list[SourceReport]:
    chosen = {"engine": "counting", "size_hw": (96, 128), **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "far", True)
        config = RunConfig((str(clip),), out, options, placement="inline", split_seconds=seconds,
                           **chosen)  # type: ignore[arg-type]  # fmt: skip
        reports = [e for e in run(prepare(config), teller=ears) if isinstance(e, SourceReport)]
    assert [report.error for report in reports] == [None]
    return reports


def test_a_network_that_remembers_too_long_is_not_split(long: Path, tmp_path: Path) -> None:
    """Spans that do not agree where they meet are thrown away: the labels are those of the whole."""
    ears = Ears()
    _split(long, tmp_path / "split", 5.0, OutputOptions(), ears)
    _split(long, tmp_path / "whole", None, OutputOptions())
    found, wanted = contents(tmp_path / "split"), contents(tmp_path / "whole")
    assert {n: v for n, v in found.items() if "manifest" not in n} == {
        n: v for n, v in wanted.items() if "manifest" not in n
    }
    (warning,) = ears.warnings
    assert "two of them agree on 0.00 % of the pixels, expected 99.9 %; labelled whole" in warning
    assert not list((tmp_path / "split" / ".roadmask" / "spans").glob("*/*"))


def test_a_network_without_memory_loses_nothing_by_spans(long: Path, tmp_path: Path) -> None:
    model = write_forgetful(tmp_path / "model")
    chosen = {"engine": "cpu", "precision": "f32", "model": model}
    reports = _split(long, tmp_path / "split", 5.0, OutputOptions(), **chosen)
    _split(long, tmp_path / "whole", None, OutputOptions(), **chosen)
    found, wanted = contents(tmp_path / "split"), contents(tmp_path / "whole")
    assert reports[0].notes == ("labelled in 4 spans",)
    for name in ("labels.mkv", "color.mp4", "stats.jsonl"):
        assert found[f"long/{name}"] == wanted[f"long/{name}"]
    assert len(np.unique(read_labels(tmp_path / "whole" / "long" / "labels.mkv"))) > 1


def write_forgetful(folder: Path) -> str:
    """The folder of a network without memory."""
    save(folder, made("FCN", recurrent=False), spec_of("FCN", recurrent=False))
    return str(folder)


def test_a_file_whose_packets_lie_is_labelled_whole(long: Path, tmp_path: Path) -> None:
    """A packet that gives no frame shows in a span, and the source is done in one go."""
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(long.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = os.urandom(4000)
    damaged.write_bytes(data)
    ears = Ears()
    report = _far_here(str(damaged), tmp_path / "out", ears, split_seconds=5.0)["damaged"]
    plain = far_reference(damaged, tmp_path / "plain")
    assert report.error is None
    assert report.frames == plain.frames
    if any("labelled whole" in line for line in ears.warnings):
        wanted = contents(tmp_path / "plain")["damaged/labels.mkv"]
        assert contents(tmp_path / "out")["damaged/labels.mkv"] == wanted


def far_reference(clip: Path, out: Path) -> SourceReport:
    config = RunConfig((str(clip),), out, OutputOptions(), engine="counting", size_hw=(96, 128),
                       placement="inline")  # fmt: skip
    return next(event for event in run(prepare(config)) if isinstance(event, SourceReport))


def node_of(name: str, cores: float, gpus: float = 0.0) -> Node:
    engine = ("cuda", "CUDA graphs f16") if gpus else ("cpu", "OpenVINO bf16")
    return Node(
        name, name, cores, gpus, Answer("", EngineChoice(*engine, "it is there", threads=2))
    )


def sites_of(nodes: list[Node], sources: int, **settings: object) -> list[tuple[object, ...]]:
    config = RunConfig(("x",), Path(), OutputOptions(), address="auto", **settings)  # type: ignore[arg-type]
    plan = prepare(config)
    assert isinstance(plan, FarPlan)
    found = Builder(plan, sources).sites(nodes)
    return [
        (s.node_id, s.lanes, s.fused, s.together, s.cpus, s.gpus, s.job.choice.threads)
        for s in found
    ]


def test_what_nodes_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source a core; a segmenter a GPU, or several, each with lanes of its own; never more than sources."""
    monkeypatch.chdir(tmp_path)
    cpu = [node_of("a", 8), node_of("b", 2)]
    stay = {"segmenters": 2, "hwaccel": "cuda"}  # frames do not leave the GPU they were decoded on
    assert sites_of([node_of("g", 12, gpus=1)], 100, **stay) == 2 * [("g", 6, True, 6, 1.0, 0.5, 2)]
    assert sites_of(cpu, 100, hwaccel="cuda") == sites_of(cpu, 100)
    assert sites_of(cpu, 100) == [("a", 8, True, 4, 1.0, 0.0, 1), ("b", 2, True, 2, 1.0, 0.0, 1)]
    assert sites_of(cpu, 2) == [("a", 1, True, 1, 1.0, 0.0, 8), ("b", 1, True, 1, 1.0, 0.0, 2)]
    assert sites_of([node_of("a", 8)], 100, placement="spread") == [("a", 7, False, 1, 0.5, 0.0, 2)]
    gpu = [node_of("g", 16, 2)]
    assert sites_of(gpu, 100) == [("g", 7, False, 1, 0.5, 1.0, 2)] * 2
    assert sites_of(gpu, 100, segmenters=2) == [("g", 3, False, 1, 0.5, 0.5, 2)] * 4
    assert sites_of(gpu, 1) == [("g", 1, True, 1, 1.0, 1.0, 2)] * 2
    with pytest.raises(ConfigError, match="has 1 cores: at least 2 are needed"):
        sites_of([node_of("a", 1)], 100, placement="spread")


def test_a_node_says_why_it_cannot_be_used(tmp_path: Path) -> None:
    files, _ = model_files("roadnet")
    token = tmp_path / "token"
    token.write_bytes(b"now")
    question = Question("roadnet", "counting", "auto", files.weights_sha256(), versions(),
                        (str(token), b"now"), (str(tmp_path), "/not/here", "s3://bucket/x"))  # fmt: skip
    good = look_around(question)
    assert (good.problem, good.unseen) == ("", ("/not/here",))
    assert good.choice is not None
    for changed, text in (
        ({"versions": {**versions(), "av": "17.0.0"}}, "labels might differ: it has av"),
        ({"weights_sha256": "0" * 64}, "are others than here"),
        ({"model": "/not/here"}, "it has not the model: unknown model"),
        ({"engine": "tensorrt"}, "cannot run here"),
        ({"token": (str(token), b"another")}, "does not see the output folder"),
    ):
        assert text in look_around(Question(**{**vars(question), **changed})).problem


def test_wrong_use_of_a_job_is_one_line(clips: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--split", "0.5", "--address", "auto"], "spans must be at least 2 s, got 0.5"),
        (["--out", "nope://bucket/x"], "there is no storage of the kind nope://"),
        (["--engine", "abacus", "--address", "auto"], "unknown engine 'abacus'"),
    ):
        given = arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path / "out")]
        done = roadmask("run", clips / "one.mp4", *given)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_same_labels_far_and_near(clips: Path, tmp_path: Path) -> None:
    far = _far_here(str(clips / "one.mp4"), tmp_path / "far")
    assert isinstance(far["one"], SourceReport)
    far_reference(clips / "one.mp4", tmp_path / "near")
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    labels = read_labels(tmp_path / "far" / "one" / "labels.mkv")
    np.testing.assert_array_equal(labels[:, -1, -1], np.arange(1, FRAMES + 1))


def test_an_error_nobody_foresaw_harms_no_other(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PipelineError("no room")

    monkeypatch.setattr("pipeline.cluster.errands.survey", broken)
    _far_here(f"{clips}/*.mp4", tmp_path / "out")
    reports = _far_here(f"{clips}/*.mp4", tmp_path / "out", resume=True, tries=1)
    assert reports["one"].error is None  # the ledger knew; nobody had to look


def test_streams_share_the_names_that_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sources a worker has done, and by however many threads at once."""
    pytest.importorskip("ray")
    from pipeline.metrics import on_ray

    seen = Counter[str]()

    class Heard:
        def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
            if name == "frames":
                seen[labels["stream"]] += 1

        def set(self, name: str, value: float, **labels: str) -> None:
            pass

        def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
            pass

    monkeypatch.setattr(on_ray, "RayMeters", Heard)
    stretch = Stretch(0.0, 0.1)

    def tell(number: int) -> None:
        done = Work(f"s{number}", 0, 1, stretch, None, stretch, (0.1,), 0)
        list(on_ray.told(iter([Progress(f"s{number}", 1, None, done)])))

    on_ray._meter.cache_clear()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(tell, range(MOST_NAMED + 50)))
    finally:
        on_ray._meter.cache_clear()
    assert len(seen) == MOST_NAMED + 1
    assert seen[OTHERS] == 3 * 50  # a count for each stage
