"""Sources in a bucket and results to one: a real S3-compatible server, and a wire that is cut."""

from __future__ import annotations

import http.server
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import boto3
import fsspec
import pytest
from gcp_storage_emulator.server import create_server
from gcsfs import GCSFileSystem
from s3fs import S3FileSystem

from pipeline.cluster import storage
from pipeline.cluster.errands import local_copy
from pipeline.cluster.ledger import Ledger, Lock
from pipeline.cluster.listing import Listed, listed
from pipeline.cluster.storage import CredentialsError, Entry, StorageError, UnreachableError
from pipeline.errors import ConfigError, OutputError, SourceNotFoundError
from pipeline.settings import scratch_folder
from pipeline.sources import Source
from pipeline.stages import Job, RunEvent, process
from tests import media
from tests.bench.chaos import contents
from tests.bench.cluster import s3_server
from tests.test_cluster import FRAMES, Ears, far_reference, far_run
from tests.test_run import roadmask

BUCKET = "fleet"


class Wire:
    """A way to a server that is cut in the middle of every connection, as long as cuts are left.

    Attributes:
        address: where it begins.
        cuts: connections that will be cut yet.
        made: connections that were cut.
    """

    def __init__(self, to: tuple[str, int], after_bytes: int) -> None:
        self._to, self._after = to, after_bytes
        self.cuts = self.made = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        carried = 0
        with near, socket.create_connection(self._to) as far:
            other = {near: far, far: near}
            while True:
                for end in select.select([near, far], [], [], 60)[0]:
                    data = end.recv(1 << 14)
                    carried += len(data)
                    if self.cuts > 0 and carried > self._after:
                        self.cuts -= 1
                        self.made += 1
                        return
                    if not data:
                        return
                    other[end].sendall(data)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def wire(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Wire]:
    """A bucket behind a wire that can be cut, and this process set to use it."""
    host, port = server.removeprefix("http://").split(":")
    with closing(Wire((host, int(port)), after_bytes=300_000)) as wire:
        _use(monkeypatch, wire.address, tmp_path)
        client = boto3.client("s3", endpoint_url=server)
        client.create_bucket(Bucket=BUCKET)
        yield wire
        for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])


def _use(monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", address), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    _be_quick(monkeypatch, tmp_path)
    S3FileSystem.clear_instance_cache()


def _be_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROADMASK_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pipeline.cluster.storage.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.cluster.feed.FIRST_PAUSE_SECONDS", 0.01)


def keys(root: str = f"s3://{BUCKET}") -> list[str]:
    store, path = storage.open_store(f"{root}/")
    return sorted(name.removeprefix(f"{BUCKET}/") for name in store.find(path))


def fill(tmp_path: Path, count: int = 2, root: str = f"s3://{BUCKET}") -> list[Path]:
    clips = []
    for number in range(count):
        clip = tmp_path / f"clip{number}.mp4"
        media.write_moving_clip(clip, FRAMES + number, seed=number)
        storage.put(clip, f"{root}/in/car{number}/{clip.name}")
        clips.append(clip)
    return clips


def download(prefix: str, to: Path, root: str = f"s3://{BUCKET}") -> None:
    for key in keys(root):
        if key.startswith(prefix):
            storage.fetch(f"{root}/{key}", to / key.removeprefix(prefix))


def from_and_to(root: str, tmp_path: Path) -> None:
    """A job in a bucket: its results are those of the same clips from a disk to a disk, and nothing stays
    behind here."""
    clips = fill(tmp_path, root=root)
    ears = Ears()
    reports = far_run([f"{root}/in/**/*.mp4"], f"{root}/out", ears)
    assert {n: (r.frames, r.error, r.folder) for n, r in reports.items()} == {
        f"car{n}/clip{n}": (FRAMES + n, None, f"{root}/out/car{n}/clip{n}") for n in range(2)
    }  # fmt: skip
    assert reports["car0/clip0"].source == f"{root}/in/car0/clip0.mp4"
    assert ears.sources == 2
    for number, clip in enumerate(clips):
        far_reference(clip, tmp_path / "near")
        name = f"clip{number}"
        download(f"out/car{number}/", tmp_path / "far", root)
        wanted, found = contents(tmp_path / "near"), contents(tmp_path / "far")
        for file in ("labels.mkv", "color.mp4", "stats.jsonl"):
            assert found[f"{name}/{file}"] == wanted[f"{name}/{file}"]
        manifest = json.loads((tmp_path / "far" / name / "manifest.json").read_text())
        assert manifest["source"] == f"{root}/in/car{number}/clip{number}.mp4"
    left = [path for path in scratch_folder().rglob("*") if path.is_file()]
    assert left == []
    report = json.loads(storage.read(f"{root}/out/report.json") or b"{}")
    assert (report["done"], report["failed"], report["left"]) == (2, 0, 0)
    assert not [key for key in keys(root) if key.endswith("job.lock")]
    again = far_run([f"{root}/in/**/*.mp4"], f"{root}/out", resume=True)
    assert {r.error for r in again.values()} == {None}
    report = json.loads(storage.read(f"{root}/out/report.json") or b"{}")
    assert (report["done"], report["fps"]) == (2, 0.0)  # nothing was done a second time


def test_from_a_bucket_to_a_bucket(wire: Wire, tmp_path: Path) -> None:
    from_and_to(f"s3://{BUCKET}", tmp_path)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket of a server that speaks Google Cloud Storage's JSON API, and this process set to use it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    _be_quick(monkeypatch, tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    GCSFileSystem.clear_instance_cache()
    yield f"gs://{BUCKET}"
    server.stop()


def test_from_a_google_bucket_to_a_google_bucket(google: str, tmp_path: Path) -> None:
    from_and_to(google, tmp_path)


def test_what_is_wrong_with_a_google_bucket_is_one_line(google: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"gs://fleet/no\.mp4: there is nothing of that"):
        storage.fetch(f"{google}/no.mp4", tmp_path / "no.mp4")
    assert storage.read(f"{google}/nothing") is None
    with pytest.raises(StorageError, match=r"gs://nowhere/a: there is no such bucket"):
        storage.write("gs://nowhere/a", b"a")


def test_a_wire_that_is_cut_costs_nothing(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: pieces are asked for again, and what arrives is whole."""
    monkeypatch.setattr("pipeline.cluster.storage.PIECE_BYTES", 500_000)
    data = bytes(range(256)) * 8000  # 2 MB
    (tmp_path / "big").write_bytes(data)
    wire.cuts = 2
    storage.put(tmp_path / "big", f"s3://{BUCKET}/big")
    sent = wire.made
    wire.cuts = 3
    storage.fetch(f"s3://{BUCKET}/big", tmp_path / "here" / "big")
    assert (tmp_path / "here" / "big").read_bytes() == data
    assert sent == 2
    assert wire.made == 5
    assert [path.name for path in (tmp_path / "here").iterdir() if path.name == ".big.part"] == []


def test_a_download_goes_on_where_another_process_was(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.storage.PIECE_BYTES", 1000)
    storage.write(f"s3://{BUCKET}/x", b"ab" * 5000)
    asked: list[int] = []
    whole = storage._piece

    def dying(store: object, entry: storage.Entry, path: str, start: int, stop: int) -> bytes:
        asked.append(start)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return whole(store, entry, path, start, stop)

    monkeypatch.setattr("pipeline.cluster.storage._piece", dying)
    target = tmp_path / "in" / "x"
    with pytest.raises(KeyboardInterrupt):
        storage.fetch(f"s3://{BUCKET}/x", target)
    assert not target.exists()
    storage.fetch(f"s3://{BUCKET}/x", target)
    assert target.read_bytes() == b"ab" * 5000
    assert asked == [0, 1000, 2000, 3000, *range(3000, 10000, 1000)]


def test_what_changes_meanwhile_is_fetched_anew(wire: Wire, tmp_path: Path) -> None:
    storage.write(f"s3://{BUCKET}/x", b"old" * 1000)
    target = tmp_path / "in" / "x"
    target.parent.mkdir()
    (target.parent / ".x.part").write_bytes(b"old" * 10)
    (target.parent / ".x.version").write_text("of another content")
    storage.write(f"s3://{BUCKET}/x", b"new" * 1000)
    storage.fetch(f"s3://{BUCKET}/x", target)
    assert target.read_bytes() == b"new" * 1000


def test_nothing_is_done_before_all_of_it_has_arrived(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the delivery breaks off at: no manifest, and the next run delivers without labelling."""
    fill(tmp_path, 1)
    put, sent = storage.put, list[str]()

    def failing(file: Path, uri: str) -> None:
        sent.append(uri)
        if len(sent) % 3 == 0:
            raise UnreachableError(f"{uri}: broke off")
        put(file, uri)

    monkeypatch.setattr("pipeline.cluster.storage.put", failing)
    out = f"s3://{BUCKET}/out"
    reports = far_run([f"s3://{BUCKET}/in/**/*.mp4"], out, tries=1)
    assert "broke off" in (reports["car0/clip0"].error or "")
    assert "out/car0/clip0/manifest.json" not in keys()
    records = list(Ledger(out, anew=False).records())
    assert [r["state"] for r in records if "id" in r] == ["failed"]
    monkeypatch.setattr("pipeline.cluster.storage.put", put)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was labelled again")

    monkeypatch.setattr("pipeline.cluster.job.process", never)
    reports = far_run([f"s3://{BUCKET}/in/**/*.mp4"], out, tries=2, resume=True)
    assert reports["car0/clip0"].error is None
    assert "out/car0/clip0/manifest.json" in keys()


def test_results_of_an_earlier_run_are_vouched_for_by_nobody_while_they_are_replaced(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 1)
    out = f"s3://{BUCKET}/out"
    far_run([f"s3://{BUCKET}/in/**/*.mp4"], out)
    put, seen = storage.put, list[bool]()

    def looking(file: Path, uri: str) -> None:
        seen.append("out/car0/clip0/manifest.json" in keys())
        put(file, uri)

    monkeypatch.setattr("pipeline.cluster.storage.put", looking)
    far_run([f"s3://{BUCKET}/in/**/*.mp4"], out)
    assert seen == [False] * 4


def test_two_jobs_to_one_bucket(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"s3://{BUCKET}/out"
    with Lock(out) as lock:
        with pytest.raises(
            OutputError, match=r"another job is writing to s3://fleet/out .*its lock ends in"
        ):
            Lock(out).__enter__()
        monkeypatch.setattr("pipeline.cluster.ledger.LEASE_SECONDS", 0.0)  # as if it had crashed
        with Lock(out):
            assert not lock._mine(f"{out}/.roadmask/job.lock")
            lock.lost.set()  # it would see that at its next sign of life
    assert keys() == []


def test_a_ledger_in_a_bucket_is_only_added_to(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    # Runs are told apart by the second they began in.
    begins = iter([datetime(2026, 12, 31, 23, 59, 59), *[datetime(2027, 1, 1)] * 2])
    clock = SimpleNamespace(now=lambda zone: next(begins).replace(tzinfo=zone))
    monkeypatch.setattr("pipeline.cluster.ledger.datetime", clock)
    out = f"s3://{BUCKET}/out"
    first = Ledger(out, anew=True)
    first.note({"id": "a", "state": "done"})
    first.sync()
    first.note({"id": "b", "state": "done"})
    first.close()
    second = Ledger(out, anew=False)
    second.note({"id": "c", "state": "done"})
    second.close()
    assert [record["id"] for record in second.records()] == ["a", "b", "c"]
    assert len(keys()) == 3
    assert list(Ledger(out, anew=True).records()) == []


def test_what_is_wrong_is_one_line(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, missing),) = (
        item for item in listed(["s3://no-such-bucket/**/*.mp4"]) if not isinstance(item, Listed)
    )
    assert "no-such-bucket" in str(missing)
    ((_, empty),) = (
        item for item in listed([f"s3://{BUCKET}/in/**/*.mp4"]) if not isinstance(item, Listed)
    )
    assert isinstance(empty, SourceNotFoundError)
    with pytest.raises(SourceNotFoundError, match="there is nothing of that name"):
        storage.fetch(f"s3://{BUCKET}/gone.mp4", tmp_path / "gone.mp4")
    _use(monkeypatch, "http://127.0.0.1:1", tmp_path)
    began = time.monotonic()
    done = roadmask("run", f"s3://{BUCKET}/in/**/*.mp4", "--out", tmp_path / "out", "--inline")
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "cannot be reached" in errors[0]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 100


@contextmanager
def refusing(code: str) -> Iterator[str]:
    """A server that answers everything with one of S3's errors."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # PUT waits for a word before it sends

        def answer(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "message"),
    [("ExpiredToken", "the credentials have expired: renew them"),
     ("InvalidAccessKeyId", "the credentials are missing or wrong")],
)  # fmt: skip
def test_credentials_that_do_not_work_stop_the_job(
    code: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with refusing(code) as address:
        _use(monkeypatch, address, tmp_path)
        ((_, error),) = (
            item for item in listed([f"s3://{BUCKET}/in/*.mp4"]) if not isinstance(item, Listed)
        )
        assert message in str(error)
        with pytest.raises(CredentialsError, match=message):
            storage.write(f"s3://{BUCKET}/x", b"x")
        done = roadmask("run", str(tmp_path), "--out", f"s3://{BUCKET}/out", "--inline")
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_credentials_that_expire_on_the_way_lose_nothing(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 3)
    fetch, count = storage.fetch, list[str]()

    def expiring(uri: str, target: Path) -> None:
        count.append(uri)
        if len(count) == 2:
            raise CredentialsError(f"{uri}: the credentials have expired: renew them and run again")
        fetch(uri, target)

    monkeypatch.setattr("pipeline.cluster.storage.fetch", expiring)
    out = f"s3://{BUCKET}/out"
    with pytest.raises(
        CredentialsError, match="expired: renew them and run again; --resume goes on"
    ):
        far_run([f"s3://{BUCKET}/in/**/*.mp4"], out)
    report = json.loads(storage.read(f"{out}/report.json") or b"{}")
    assert (report["done"], report["left"], report["failed"]) == (1, 2, 0)
    reports = far_run([f"s3://{BUCKET}/in/**/*.mp4"], out, resume=True)
    assert len(reports) == 3
    assert {report.error for report in reports.values()} == {None}


def test_from_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows no ranges, and addresses with a query."""
    _use(monkeypatch, "http://127.0.0.1:1", tmp_path)
    monkeypatch.setattr("pipeline.cluster.storage.PIECE_BYTES", 1000)
    site = tmp_path / "site"
    site.mkdir()
    media.write_moving_clip(site / "a clip.mp4", FRAMES, seed=1)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(site))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a%20clip.mp4?token=a/b"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.run.RunConfig.far", True)
            reports = far_run([url], tmp_path / "out")
        server.shutdown()
    assert [(name, r.error, r.frames) for name, r in reports.items()] == [("a clip", None, FRAMES)]
    assert reports["a clip"].source == url.replace("a/b", "***")


def test_any_file_system_gets_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is written shows while it is, it has another name until it is whole."""
    monkeypatch.setattr("pipeline.cluster.storage._OBJECT_STORES", frozenset())
    storage.write("memory://x/y/report.json", b"{}")
    store, _ = storage.open_store("memory://x")
    assert store.find("/x") == ["/x/y/report.json"]
    assert storage.read("memory://x/y/report.json") == b"{}"
    storage.remove("memory://x/y/report.json")
    storage.remove("memory://x/y/report.json")
    assert storage.read("memory://x/y/report.json") is None
    with pytest.raises(ConfigError, match=r"there is no storage of the kind s4://"):
        storage.open_store("s4://x")
    assert issubclass(UnreachableError, StorageError)


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket in this process."""
    _use(monkeypatch, "http://127.0.0.1:1", tmp_path)
    yield "memory://near"
    store, _ = storage.open_store("memory://near")
    if store.exists("/near"):
        store.rm("/near", recursive=True)


def test_a_copy_that_stayed_behind_counts_while_it_is_the_same(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed left it in the scratch folder; meanwhile the object may be another."""
    uri, target = f"{near}/x.mp4", tmp_path / "in" / "x.mp4"
    storage.write(uri, b"old" * 100)
    storage.fetch(uri, target)
    with monkeypatch.context() as patch:
        patch.delattr("pipeline.cluster.storage._piece")
        storage.fetch(uri, target)
    assert target.read_bytes() == b"old" * 100
    storage.write(uri, b"new" * 100)  # as long, and at once
    storage.fetch(uri, target)
    assert target.read_bytes() == b"new" * 100
    target.write_bytes(b"own" * 100)
    (target.parent / ".x.mp4.whole").unlink()  # nobody fetched it
    storage.fetch(uri, target)
    assert target.read_bytes() == b"new" * 100
    monkeypatch.setattr("pipeline.cluster.storage.entry_of", lambda uri, info: Entry(uri, 300, ""))
    target.write_bytes(b"old" * 100)
    storage.fetch(uri, target)  # nothing tells whether it is the same
    assert target.read_bytes() == b"new" * 100


def test_a_source_that_was_replaced_is_not_labelled_by_its_old_copy(near: str) -> None:
    source = Source("x", f"{near}/x.mp4")
    storage.write(source.uri, b"old")
    with local_copy(source) as here:
        copy = Path(here.uri)
        storage.write(source.uri, b"new")
        with local_copy(source) as again:  # another source of this machine
            assert again.uri == here.uri
            assert copy.read_bytes() == b"new"
    assert not copy.parent.exists()


def test_a_delivery_that_failed_is_tried_again_without_labelling(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "one.mp4"
    media.write_moving_clip(clip, FRAMES, seed=1)
    put, sent, labelled = storage.put, list[str](), list[str]()

    def failing(file: Path, uri: str) -> None:
        sent.append(uri)
        if len(sent) == 2:
            raise UnreachableError(f"{uri}: broke off")
        put(file, uri)

    def counted(job: Job, source: Source, *rest: object, **more: object) -> Iterator[RunEvent]:
        labelled.append(source.stream_id)
        return process(job, source, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.cluster.storage.put", failing)
    monkeypatch.setattr("pipeline.cluster.job.process", counted)
    ears = Ears()
    report = far_run([str(clip)], near, ears)["one"]
    assert (report.error, report.frames, labelled) == (None, FRAMES, ["one"])
    assert storage.read(f"{near}/one/manifest.json") is not None
    assert len(ears.warnings) == 1


def test_a_death_does_not_ask_for_another_job_s_results_in_a_bucket(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "one.mp4"
    media.write_moving_clip(clip, FRAMES, seed=1)
    far_run([str(clip)], near)
    monkeypatch.setattr("pipeline.restarts.Restarts.resume", True)  # as after a death
    report = far_run([str(clip)], near, split_seconds=60.0)["one"]
    assert (report.error, report.frames, report.notes) == (None, FRAMES, ())
    manifest = json.loads(storage.read(f"{near}/one/manifest.json") or b"{}")
    assert manifest["identity"]["the split"] == 60.0


def test_a_ledger_waits_for_a_bucket_that_is_away(
    near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.ledger.SYNC_SECONDS", 0.0)
    ledger = Ledger(near, anew=True)
    errors: list[StorageError] = [UnreachableError("away"), CredentialsError("expired")]

    def failing(uri: str, data: bytes) -> None:
        raise errors[0]

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cluster.storage.write", failing)
        ledger.note({"id": "a"})
        errors.pop(0)
        with pytest.raises(CredentialsError):
            ledger.note({"id": "b"})
    ledger.note({"id": "c"})
    assert [record["id"] for record in ledger.records()] == ["a", "b", "c"]


def test_a_job_whose_ledger_cannot_be_written_says_so_and_reports(
    near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "one.mp4"
    media.write_moving_clip(clip, FRAMES, seed=1)
    monkeypatch.setattr("pipeline.cluster.ledger.SYNC_SECONDS", 0.0)
    write = storage.write

    def failing(uri: str, data: bytes) -> None:
        if "ledger-" in uri:
            raise UnreachableError(f"{uri}: cannot be reached")
        write(uri, data)

    monkeypatch.setattr("pipeline.cluster.storage.write", failing)
    with pytest.raises(UnreachableError, match=r"ledger-.*cannot be reached"):
        far_run([str(clip)], near)
    report = json.loads(storage.read(f"{near}/report.json") or b"{}")
    assert (report["done"], report["left"]) == (1, 0)
    assert storage.read(f"{near}/one/manifest.json") is not None
