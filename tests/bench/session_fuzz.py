"""Does a damaged or hostile session do harm?

    python -m tests.bench.session_fuzz --cases 10000

Each case is a copy of a good session of two cameras, spoiled at random by one to three of the ways below,
then opened, checked and replayed to its end. It must be read as far as it is good, or refused in one line;
nothing may be opened, made or removed outside the session, nor be written in it; and the process must live,
which a parent process watches. Prints a table and, last, a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.engines.counting import CountingEngine
from pipeline.errors import PipelineError
from pipeline.session.format import Limits, encode_line
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.moments import began_at, frame_before
from pipeline.session.player import Player
from pipeline.session.reader import Session
from pipeline.session.timeline import read_camera
from pipeline.session.verify import Verification
from tests.recordings import MODEL_HW, Script, record, short_clip

HOSTILE_NAMES = (
    "../../etc/passwd", "/etc/passwd", "../outside/secret.txt", "..", ".", "", "a\0b", "~root/.ssh",
    "C:\\Windows\\win.ini", "000001.mkv/../../../../etc/passwd", "x" * 5000, "\u202egnp.mkv", "CON",
    "file:///etc/passwd", "http://127.0.0.1:9/x", "concat:/etc/passwd|/etc/group", "%s%n", "-rf",
)  # fmt: skip
HOSTILE_VALUES: tuple[Any, ...] = (
    2**63, -(2**63), 2**64, 10**400, -1, 0, 1e308, -1e308, 1e-320, True, None, "", "nan", "1/0", [],
    {}, [[[[]]]], 0.5, "9" * 400, 65535, 2**31, -(2**31), 2**62, ["x"] * 100, *HOSTILE_NAMES,
)  # fmt: skip
Mutation = Callable[[Path, random.Random], None]


def make_session(folder: Path) -> Path:
    """A good session of two cameras, one of which reconnects, in several segments."""
    clips = [short_clip(folder / f"clip{n}.mp4", 9, seed=n, group=4) for n in range(3)]
    scripts = {
        "front": Script(clips[:1], frozenset({3, 6})),
        "rear": Script(clips[1:], frozenset({5}), {7: 1.4}),
    }
    session = folder / "good"
    record(session, scripts, limits=Limits(segment_seconds=0.25, checkpoint_seconds=0.2))
    return session


def spoil(session: Path, dice: random.Random) -> list[str]:
    """Spoil a session in place; returns how."""
    chosen = dice.choices(list(MUTATIONS), k=dice.choice((1, 1, 1, 2, 3)))
    for name in chosen:
        try:
            MUTATIONS[name](session, dice)
        except (OSError, ValueError, LookupError):
            continue  # an earlier one took away what this one wanted
    return chosen


def attempt(session: Path, forged: bool = False) -> str:
    """Open, check and replay it; returns what came of it. Raises whatever is not a refusal.

    Unless it was `forged`, with checksums that are right, labels that are said to be exact must be.
    """
    try:
        opened = Session.open(session)
    except PipelineError as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"the refusal must be one line, got {str(error)!r}") from error
        return "refused"
    opened.check()
    verification = Verification()
    segmenter = ReplaySegmenter(lambda size: CountingEngine(size, 8))
    player = Player(opened, segmenter, lambda _: MODEL_HW, (verification.on_frame,), speed=math.inf)
    with player:
        if not player.wait(60.0):
            player.raise_failure()
            raise AssertionError("the replay did not end in 60 s")
        player.join()
        look_at_times(opened, player.duration_seconds)
    for line in opened.notes.all():
        if "\n" in line or not line.isprintable():
            raise AssertionError(f"a note must be one printable line, got {line!r}")
    if verification.different and not forged:
        raise AssertionError(
            f"labels differ where they should be exact: {list(verification.lines())}"
        )
    return "whole" if not opened.notes.all() else "in part"


def look_at_times(session: Session, duration: float) -> None:
    """What a page asks of a session's logs: what happened when, and the frame before another."""
    began_at(session)
    for at in (0.0, duration / 2, duration):
        before = frame_before(session, at)
        if before is not None and not before < at:
            raise AssertionError(f"the frame before {at} cannot have come at {before}")
    for camera in session.cameras.values():
        timeline = read_camera(session, camera)
        spans = [*timeline.state_spans(duration), *timeline.gap_spans(),
                 *timeline.drop_spans(duration)]  # fmt: skip
        if any(span.end < span.start for span in spans):
            raise AssertionError("a span must not end before it begins")
        timeline.dropped_until(duration)
        timeline.states_until(duration, 50)


@contextmanager
def watched(session: Path) -> Iterator[list[str]]:
    """What is opened for reading outside the session, or for writing, made, moved or removed anywhere."""
    wrong: list[str] = []
    inside = str(session)
    # Threads that were there before are somebody else's; those of the replay begin later.
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if not _Watch.on or event not in _WATCHED or threading.get_ident() in others:
            return
        if not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return  # a descriptor, which was opened before
        path = os.fsdecode(arguments[0])
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        writes = event not in ("open", "os.listdir", "os.scandir") or bool(
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        place = os.path.normpath(path)
        outside = place != inside and not place.startswith(inside + os.sep)
        if (outside and not path.startswith(_CODE)) or writes:
            wrong.append(f"{event} {path[:200]!r}")

    if not _Watch.hooks:
        sys.addaudithook(lambda event, arguments: [hook(event, arguments) for hook in _Watch.hooks])
    _Watch.hooks[:] = [see]
    _Watch.on = True
    try:
        yield wrong
    finally:
        _Watch.on = False


class _Watch:
    hooks: list[Callable[[str, tuple[Any, ...]], None]] = []  # noqa: RUF012
    on = False


_WATCHED = frozenset({
    "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
    "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree", "subprocess.Popen", "socket.connect",
})  # fmt: skip
_CODE = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc/", "/sys/")


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder: size, kind and time of the last change."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mode, stat.st_mtime_ns)
    return found


def run_case(good: Path, folder: Path, seed: int) -> tuple[str, list[str]]:
    """One case; returns what came of it and how it was spoiled. Raises AssertionError if harm was done."""
    session = folder / "session"
    shutil.copytree(good, session, symlinks=True)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    how = spoil(session, random.Random(seed))
    before = listing(folder)
    with watched(session) as wrong:
        outcome = attempt(session, bool(FORGERIES.intersection(how)))
    if wrong:
        raise AssertionError(f"outside the session, or writing: {wrong[:3]}")
    if listing(folder) != before:
        raise AssertionError("files were changed")
    return outcome, how


def run_cases(first: int, count: int, progress: Path) -> Counter[str]:
    """Cases one after another; `progress` holds the seed of the one under way."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as text:
        good = make_session(Path(text))
        for seed in range(first, first + count):
            progress.write_text(str(seed))
            folder = Path(text) / "case"
            folder.mkdir()
            try:
                outcome, how = run_case(good, folder, seed)
            except Exception as error:
                raise AssertionError(f"case {seed}: {type(error).__name__}: {error}") from error
            outcomes[outcome] += 1
            for name in set(how):
                outcomes[f"  {name}"] += 1
            shutil.rmtree(folder)
    return outcomes


# The ways to spoil a session.


def _files(session: Path, *suffixes: str) -> list[Path]:
    found = sorted(p for p in session.rglob("*") if p.is_file() and not p.is_symlink())
    return [p for p in found if p.name != ".lock" and (not suffixes or p.suffix in suffixes)]


def _truncate(session: Path, dice: random.Random) -> None:
    path = dice.choice(_files(session))
    os.truncate(path, dice.randrange(path.stat().st_size))


def _flip_bits(session: Path, dice: random.Random) -> None:
    path = dice.choice(_files(session))
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 3, 16))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _garbage(session: Path, dice: random.Random) -> None:
    path = dice.choice(_files(session))
    data = bytearray(path.read_bytes())
    at = dice.randrange(len(data))
    data[at : at + dice.randrange(1, 400)] = dice.randbytes(dice.randrange(400))
    path.write_bytes(data)


def _remove(session: Path, dice: random.Random) -> None:
    dice.choice(_files(session)).unlink()


def _remove_segment(session: Path, dice: random.Random) -> None:
    path = dice.choice(_files(session, ".log"))
    for suffix in (".log", ".mkv", ".json"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _remove_folder(session: Path, dice: random.Random) -> None:
    shutil.rmtree(dice.choice([p for p in sorted(session.rglob("*")) if p.is_dir()]))


def _wrong_checksum(session: Path, dice: random.Random) -> None:
    path = dice.choice([p for p in _files(session, ".json") if p.name != "session.json"])
    seal = json.loads(path.read_text())
    facts = seal["files"][dice.choice(sorted(seal["files"]))]
    key = dice.choice(sorted(facts))
    facts[key] = dice.choice(("0" * 64, "", 1, -5, 2**70, None, [], facts[key]))
    path.write_text(json.dumps(seal))


def _hostile_index(session: Path, dice: random.Random) -> None:
    """Paths where the seal has names of files, and where the session's first file has texts."""
    path = dice.choice(_files(session, ".json"))
    raw = json.loads(path.read_text())
    name = dice.choice(HOSTILE_NAMES)
    if path.name == "session.json":
        raw[dice.choice(sorted(raw))] = name
        if raw.get("configuration") and isinstance(raw["configuration"], dict):
            raw["configuration"][dice.choice(sorted(raw["configuration"]))] = name
    else:
        raw["files"][name] = raw["files"].pop(dice.choice(sorted(raw["files"])))
    path.write_text(json.dumps(raw))


def _hostile_value(session: Path, dice: random.Random) -> None:
    """A value that fits nowhere, in a line or a file whose checksum is right."""
    path = dice.choice(_files(session, ".log", ".log", ".json"))
    if path.suffix == ".json":
        raw = json.loads(path.read_text())
        _poison(raw, dice)
        path.write_text(json.dumps(raw))
        return
    lines = path.read_bytes().splitlines(keepends=True)
    place = dice.choice((0, dice.randrange(len(lines))))
    record = json.loads(lines[place][9:])
    _poison(record, dice)
    lines[place] = encode_line(record)
    path.write_bytes(b"".join(lines))


def _poison(raw: dict[str, Any], dice: random.Random) -> None:
    key = dice.choice(sorted(raw))
    if isinstance(raw[key], dict) and raw[key] and dice.random() < 0.8:
        _poison(raw[key], dice)
    elif isinstance(raw[key], list) and raw[key] and dice.random() < 0.5:
        raw[key][dice.randrange(len(raw[key]))] = dice.choice(HOSTILE_VALUES)
    else:
        raw[key] = dice.choice(HOSTILE_VALUES)


def _link(session: Path, dice: random.Random) -> None:
    """A link in place of a file or a folder."""
    paths = [p for p in sorted(session.rglob("*")) if p.name != ".lock"]
    path = dice.choice(paths)
    target = dice.choice(
        ("/etc/passwd", "/etc", str(session.parent / "outside" / "secret.txt"), "/dev/zero",
         str(session.parent / "outside"), str(session / "front"), path.name, "/nowhere",
         "../../../outside/secret.txt")
    )  # fmt: skip
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.symlink_to(target)


def _wrong_kind(session: Path, dice: random.Random) -> None:
    """A folder, a pipe or nothing where a file should be; a file where a folder should."""
    path = dice.choice([p for p in sorted(session.rglob("*")) if p.name != ".lock"])
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        path.write_bytes(b"")
        return
    path.unlink()
    kind = dice.choice(("folder", "pipe", "empty"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"")


def _mix_up(session: Path, dice: random.Random) -> None:
    """A file under another's name, or under a number nobody counted to."""
    suffix = dice.choice((".log", ".mkv", ".json"))
    files = [p for p in _files(session, suffix) if p.name != "session.json"]
    one, other = dice.choice(files), dice.choice(files)
    if dice.random() < 0.5:
        other = one.with_name(dice.choice(("999999999", "000000", "99999999", "1" * 200)) + suffix)
    shutil.copyfile(one, other)


def _strange_names(session: Path, dice: random.Random) -> None:
    """Folders that are no cameras."""
    name = dice.choice(("x\ny", "-rf", "\u202e", "packets", "a" * 200, "..front", "fr\u00f6nt"))
    folder = session / name
    # Links stay links: one to /dev/zero has no end.
    shutil.copytree(session / "front", folder, symlinks=True)


def _lines(session: Path, dice: random.Random) -> None:
    """Lines repeated, out of order, missing, endless."""
    path = dice.choice(_files(session, ".log"))
    lines = path.read_bytes().splitlines(keepends=True)
    how = dice.randrange(5)
    if how == 0:
        dice.shuffle(lines)
    elif how == 1:
        lines.insert(dice.randrange(len(lines)), dice.choice(lines))
    elif how == 2:
        del lines[dice.randrange(len(lines))]
    elif how == 3:
        lines.append(b"9" * 3_000_000)
    else:
        lines.insert(dice.randrange(len(lines)), encode_line({"kind": dice.choice(HOSTILE_NAMES)}))
    path.write_bytes(b"".join(lines))


def _hostile_payload(session: Path, dice: random.Random) -> None:
    """Bytes that are not what they should be, behind a checksum that is right."""
    path = dice.choice(_files(session, ".log"))
    lines = path.read_bytes().splitlines(keepends=True)
    records = [json.loads(line[9:]) for line in lines]
    place = dice.choice([n for n, record in enumerate(records) if "crc" in record])
    record = records[place]
    media = bytearray(path.with_suffix(".mkv").read_bytes())
    data = dice.choice((
        dice.randbytes(record["bytes"]), b"", _giant_png(), b"\0" * record["bytes"],
        zlib.compress(b"\0" * 10_000_000),
        bytes(b ^ dice.choice((0, 0, 0, 1)) for b in
              media[record["at"] : record["at"] + record["bytes"]]),
    ))  # fmt: skip
    record["at"], record["bytes"], record["crc"] = len(media), len(data), zlib.crc32(data)
    path.with_suffix(".mkv").write_bytes(media + data)
    lines[place] = encode_line(record)
    path.write_bytes(b"".join(lines))


def _giant_png() -> bytes:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


MUTATIONS: dict[str, Mutation] = {
    "truncated": _truncate,
    "bits flipped": _flip_bits,
    "garbage": _garbage,
    "file missing": _remove,
    "segment missing": _remove_segment,
    "folder missing": _remove_folder,
    "wrong checksum": _wrong_checksum,
    "hostile path in the index": _hostile_index,
    "hostile value": _hostile_value,
    "link": _link,
    "wrong kind of file": _wrong_kind,
    "files mixed up": _mix_up,
    "strange names": _strange_names,
    "lines mixed up": _lines,
    "hostile payload": _hostile_payload,
}

FORGERIES = frozenset({"hostile value", "hostile payload", "files mixed up", "lines mixed up"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=500, help="cases a process")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(run_cases(options.first, options.cases, options.worker)))
        return
    began, total, failures = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "seed"
        for first in range(options.first, options.first + options.cases, options.chunk):
            count = min(options.chunk, options.first + options.cases - first)
            command = [sys.executable, "-m", "tests.bench.session_fuzz", "--worker", str(progress),
                       "--first", str(first), "--cases", str(count)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
                failures.append(f"case {progress.read_text()}: {why[0]}")
                print(failures[-1], file=sys.stderr, flush=True)
                continue
            total += Counter(json.loads(done.stdout.splitlines()[-1]))
            print(f"{first + count} cases", file=sys.stderr, flush=True)
    for name, count in total.items():
        print(f"{name:32} {count}")
    print(json.dumps({"cases": options.cases, "failures": failures, "outcomes": total,
                      "seconds": round(time.monotonic() - began, 1)}))  # fmt: skip
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
