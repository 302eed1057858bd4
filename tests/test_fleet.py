"""Cameras on several machines: spread, moved with their memories, and served again when a machine is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engines.counting import MODULUS, CountingEngine
from pipeline.errors import ConfigError, ModelError, PipelineError
from pipeline.live.address import Address
from pipeline.live.delivery import CameraConfig
from pipeline.live.fleet import Fleet
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.live.live import LiveHub
from pipeline.live.site import Place, Site, SiteLostError, SiteReport
from pipeline.live.sites import FleetConfig, KnownSite
from tests.cameras import FakeCamera, camera_config, steps_of, until

FPS = 50.0
PACE = FleetConfig(
    report_seconds=0.05, lost_seconds=30.0, places_seconds=0.05, checkpoint_seconds=0.1,
    longest_loss_seconds=120.0, settled_seconds=0.0, ready_seconds=60.0, gather_seconds=30.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _machines_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one process are as fast as the others let them be: what would be measured of them sends
    cameras to and fro. Unmeasured, all are alike, and it is the number of cameras that counts."""
    monkeypatch.setattr("pipeline.live.sites._LEAST_BUSY_SECONDS", math.inf)
    monkeypatch.setattr("pipeline.live.member._LEAST_SECONDS", math.inf)


class World:
    """Cameras that any machine can open; each opening gives frames of its own count.

    Args:
        at_once: how many may open one camera at a time; for others it gives nothing.
    """

    def __init__(self, at_once: int = 100) -> None:
        self.at_once = at_once
        self.opened: dict[str, list[FakeCamera]] = {}

    def make(self, name: str, address: Address, config: CameraConfig) -> FakeCamera:
        others = [camera for camera in self.opened.get(name, []) if not camera.stopped.is_set()]
        camera = FakeCamera(fps=FPS if len(others) < self.at_once else 0.0)
        self.opened.setdefault(name, []).append(camera)
        return camera


class Answer:
    def __init__(self, machine: Machine, found: Future[Any]) -> None:
        self._machine, self._found = machine, found

    def done(self) -> bool:
        return self._machine.dead or (self._found.done() and not self._machine.mute.is_set())

    def result(self, timeout_seconds: float) -> Any:
        ends_at = time.monotonic() + timeout_seconds
        while not self.done():
            if time.monotonic() > ends_at:
                raise SiteLostError("no answer")
            with suppress(LateError):
                self._found.exception(0.01)
        if self._machine.dead:
            raise SiteLostError("its process died")
        return self._found.result()


class Machine:
    """A site in threads of this process, which can die and fall silent."""

    def __init__(self, world: World, failure: PipelineError | None) -> None:
        self._world, self._failure = world, failure
        self.dead, self.mute = False, Event()
        self._pool = ThreadPoolExecutor(8)
        self.site = self._pool.submit(self._open)

    def _open(self) -> Site:
        if self._failure is not None:
            raise self._failure
        return Site(
            lambda listeners: LiveHub(
                camera_config(), lambda model_hw: CountingEngine(model_hw, 16), self._world.make,
                longest_gap_seconds=60.0,  # a machine that stands still for a while resets nothing
                listeners=listeners,
            )
        )  # fmt: skip

    def ask(self, method: str, *arguments: Any) -> Answer:
        if self.dead:
            return Answer(self, Future())
        return Answer(self, self._pool.submit(self._call, method, arguments))

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self.site.result(), method)(*arguments)

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self.mute.clear()
            with suppress(PipelineError):
                self.site.result().close()
            self._pool.shutdown(wait=False)


class Machines:
    """As many as a test wants."""

    def __init__(self, *names: str, world: World | None = None) -> None:
        self.world = world or World()
        self.places = {name: Place(name, f"machine {name}") for name in names}
        self.failures: dict[str, PipelineError] = {}
        self.running: dict[str, Machine] = {}
        self.wanted: list[int] = []

    def current(self) -> list[Place]:
        return list(self.places.values())

    def open(self, place: Place) -> Machine:
        self.running[place.name] = Machine(self.world, self.failures.get(place.name))
        return self.running[place.name]

    def want(self, sites: int) -> None:
        self.wanted.append(sites)

    def drain(self, name: str) -> None:
        self.places[name] = replace(self.places[name], going=True)


@contextmanager
def fleet_of(
    machines: Machines, cameras: int, pace: FleetConfig = PACE
) -> Iterator[tuple[Fleet, list[str]]]:
    """A fleet whose cameras are all served, and what it says."""
    said: list[str] = []
    with Fleet(camera_config(), machines, say=said.append, pace=pace) as fleet:
        for number in range(cameras):
            fleet.add("rtsp://somewhere/x", str(number))
        yield fleet, said


def served(fleet: Fleet, more_frames: int = 10) -> Callable[[], bool]:
    """Whether every camera has a site, and has had so many frames since."""
    before = [status.frames for status in fleet.cameras()]

    def check() -> bool:
        now = [status.frames for status in fleet.cameras()]
        enough = all(new >= old + more_frames for new, old in zip(now, before, strict=True))
        return enough and all(fleet.where().values())

    return check


def counts(fleet: Fleet) -> dict[str, int]:
    """Cameras at each place."""
    where = list(fleet.where().values())
    return {str(name): where.count(name) for name in sorted(set(map(str, where)))}


class Steps:
    """How many frames a camera's memory has seen, by each frame that comes from it."""

    def __init__(self, fleet: Fleet, camera: str) -> None:
        # None is pushed out: however long a test looks elsewhere, what follows is no leap.
        self._feed = fleet.subscribe(camera, depth=100_000)
        self.steps: list[int] = []
        self.indices: list[int] = []

    def follow(self, frames: int) -> None:
        """Take all that have come meanwhile, and then so many more."""
        while (shown := self._feed.take(0.0)) is not None:
            self._note(shown)
        for _ in range(frames):
            shown = self._feed.take(60.0)
            assert shown is not None, "no frame came"
            self._note(shown)

    def _note(self, shown: Shown) -> None:
        self.steps.append(steps_of(shown))
        self.indices.append(shown.frame_index)

    def went_on(self) -> bool:
        """Whether the memory was never begun anew, nor taken from long before."""
        return self.set_back() == []

    def set_back(self) -> list[int]:
        """By how many steps the memory was set back, each time that it did not go on."""
        return [
            (before - after) % MODULUS for before, after in pairwise(self.steps)
            if not 0 < (after - before) % MODULUS < MODULUS // 2
        ]  # fmt: skip


def test_cameras_are_spread_and_their_frames_come() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 6) as (fleet, said):
        until(served(fleet))
        assert counts(fleet) == {"A": 3, "B": 3}
        assert machines.wanted[0] == 2
        steps = Steps(fleet, "4")
        steps.follow(20)
        assert steps.went_on()
        assert steps.indices == sorted(set(steps.indices))
        statuses = fleet.cameras()
    assert machines.wanted[-1] == 0, "the autoscaler would keep the nodes"
    assert [status.name for status in statuses] == list("012345")
    for status in statuses:
        assert (status.state, status.resets, status.reconnects) == ("live", 0, 0)
        assert [change.state for change in status.history] == ["connecting", "live"]
    assert sorted(said) == ["machine A is ready", "machine B is ready"]


def test_the_cameras_of_a_machine_that_goes_move_with_their_memories() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 4) as (fleet, said):
        until(served(fleet))
        moved = next(name for name, place in fleet.where().items() if place == "A")
        steps = Steps(fleet, moved)
        steps.follow(10)
        machines.drain("A")
        until(lambda: counts(fleet) == {"B": 4})
        steps.follow(20)
        until(served(fleet))
        statuses = fleet.cameras()
    assert steps.went_on()
    assert steps.indices == sorted(set(steps.indices))
    assert all((status.resets, status.reconnects) == (0, 0) for status in statuses)
    history = next(status.history for status in statuses if status.name == moved)
    assert (history[-1].state, history[-1].reason) == ("live", "moved to machine B")
    assert all(
        len(cameras) == 2 for name, cameras in machines.world.opened.items() if name == moved
    )
    assert "machine A is to go: its cameras move" in said


def test_every_frame_that_was_labelled_is_in_the_memory_after_a_move() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 1) as (fleet, _):
        until(served(fleet))
        before = fleet.where()["0"]
        assert before is not None
        machines.drain(before)
        until(lambda: fleet.where()["0"] not in (before, None))
        until(served(fleet))
        camera = machines.world.opened["0"][-1]
        camera.fps = 0.0  # from now on one frame at a time

        def in_step() -> bool:
            camera.give()
            time.sleep(0.3)
            handed = fleet._members["0"].handed
            return handed is not None and handed.state.steps == fleet.cameras()[0].frames

        until(in_step)


def test_a_camera_that_only_one_can_open_moves_all_the_same() -> None:
    machines = Machines("A", "B", world=World(at_once=1))
    with fleet_of(machines, 1, replace(PACE, ready_seconds=0.5)) as (fleet, _):
        until(served(fleet))
        (before,) = fleet.where().values()
        assert before is not None
        steps = Steps(fleet, "0")
        steps.follow(5)
        machines.drain(before)
        until(lambda: fleet.where()["0"] not in (before, None))
        steps.follow(5)
        assert steps.went_on()
        assert fleet.cameras()[0].resets == 0


@pytest.mark.parametrize("how", ["dies", "falls silent", "disappears"])
def test_the_cameras_of_a_lost_machine_are_served_by_others_with_the_memory_kept_last(
    how: str,
) -> None:
    machines = Machines("A", "B", "C")
    pace = replace(PACE, lost_seconds=10.0) if how == "falls silent" else PACE
    with fleet_of(machines, 6, pace) as (fleet, said):
        until(served(fleet, 20))
        lost = next(name for name, place in fleet.where().items() if place == "A")
        steps = Steps(fleet, lost)
        steps.follow(10)
        before = {status.name: status for status in fleet.cameras()}
        machines.failures["A"] = ModelError("it does not come back")
        if how == "dies":
            machines.running["A"].kill()
        elif how == "falls silent":
            machines.running["A"].mute.set()
        else:
            del machines.places["A"]
        until(lambda: counts(fleet) == {"B": 3, "C": 3})
        until(served(fleet))
        steps.follow(10)
        after = {status.name: status for status in fleet.cameras()}
    assert len(steps.set_back()) <= 1
    assert sum(steps.set_back()) < 100  # by what it saw since it was kept
    assert steps.indices == sorted(set(steps.indices))
    assert after[lost].frames > before[lost].frames
    assert after[lost].changes["reconnecting"] == 1
    assert "was lost" in next(c.reason for c in after[lost].history if c.state == "reconnecting")
    for status in after.values():
        assert status.resets == 0
    assert any(line.startswith("machine A") for line in said[3:])


def test_a_memory_that_is_too_old_is_not_taken_and_that_is_counted() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 2, replace(PACE, longest_loss_seconds=0.0)) as (fleet, _):
        until(served(fleet, 20))
        until(lambda: all(member.handed for member in fleet._members.values()))
        lost = next(name for name, place in fleet.where().items() if place == "A")
        del machines.places["A"]
        machines.running["A"].kill()
        until(lambda: counts(fleet) == {"B": 2})
        until(served(fleet))
        resets = {status.name: status.resets for status in fleet.cameras()}
    assert resets == {name: int(name == lost) for name in resets}


def test_a_machine_that_comes_is_filled_and_no_memory_is_lost() -> None:
    machines = Machines("A")
    with fleet_of(machines, 6) as (fleet, _):
        until(served(fleet))
        assert counts(fleet) == {"A": 6}
        machines.places["B"] = Place("B", "machine B")
        until(lambda: counts(fleet) == {"A": 3, "B": 3}, 120)
        until(served(fleet))
        assert [status.resets for status in fleet.cameras()] == [0] * 6
        assert [status.reconnects for status in fleet.cameras()] == [0] * 6


def test_a_process_that_dies_is_replaced_and_its_machine_filled_again() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 4) as (fleet, _):
        until(served(fleet))
        machines.failures["A"] = ModelError("not yet")  # or it may be back before anybody looks
        machines.running["A"].kill()
        until(lambda: counts(fleet) == {"B": 4})
        del machines.failures["A"]
        until(lambda: counts(fleet) == {"A": 2, "B": 2}, 120)
        until(served(fleet))
        assert [status.resets for status in fleet.cameras()] == [0] * 4


def test_a_machine_that_cannot_label_is_told_of_and_left_out() -> None:
    machines = Machines("A", "B")
    machines.failures["A"] = ModelError("model 'x' is not here")
    with fleet_of(machines, 2) as (fleet, said):
        until(served(fleet))
        assert counts(fleet) == {"B": 2}
        assert fleet.failure is None
        assert "machine A: model 'x' is not here" in said


def test_where_no_machine_can_label_the_run_ends_and_says_why() -> None:
    machines = Machines("A", "B")
    machines.failures = dict.fromkeys("AB", ModelError("model 'x' is not here"))
    with fleet_of(machines, 1) as (fleet, _):
        assert isinstance(until(lambda: fleet.failure), ModelError)


def test_a_camera_that_a_machine_should_not_have_is_taken_from_it() -> None:
    machines = Machines("A", "B")
    with fleet_of(machines, 2) as (fleet, _):
        until(served(fleet))
        other = next(place for name, place in fleet.where().items() if name == "0")
        wrong = next(machine for name, machine in machines.running.items() if name != other)
        wrong._call("add", ("0", fleet._members["0"].address, None, False))
        stray = machines.world.opened["0"][-1]
        until(stray.stopped.is_set)
        until(served(fleet))


def test_a_camera_that_a_machine_forgot_is_given_to_one_again() -> None:
    machines = Machines("A")
    with fleet_of(machines, 1) as (fleet, _):
        until(served(fleet))
        machines.running["A"]._call("remove", ("0",))
        until(lambda: len(machines.world.opened["0"]) == 2)
        until(served(fleet))
        assert fleet.cameras()[0].resets == 0


def test_cameras_come_and_go() -> None:
    machines = Machines("A")
    with fleet_of(machines, 1) as (fleet, _):
        until(served(fleet))
        with pytest.raises(ConfigError, match="already"):
            fleet.add("rtsp://somewhere/x", "0")
        for alone in ("/dev/video0", "udp://:5000"):
            with pytest.raises(ConfigError, match="every node can reach"):
                fleet.add(alone)
        assert [fleet.add("rtsp://somewhere/x") for _ in range(2)] == [
            "somewhere_x",
            "somewhere_x_2",
        ]
        feed = fleet.subscribe("0")
        fleet.remove("0")
        assert feed.over
        until(machines.world.opened["0"][0].stopped.is_set)
        for forgotten in (fleet.remove, fleet.subscribe):
            with pytest.raises(KeyError):
                forgotten("0")
        until(served(fleet))
        last = fleet.subscribe("somewhere_x")
    assert last.over
    assert all(camera.stopped.is_set() for camera in machines.world.opened["somewhere_x"])


def test_what_machines_do_and_what_cameras_bring_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pixels a second of work, and pixels a second: means in which the newest counts for a part."""
    from pipeline.live.address import parse_address
    from pipeline.live.member import Member

    monkeypatch.undo()
    site = KnownSite(Place("A", "machine A"), SimpleNamespace(ask=lambda *_: None))  # type: ignore[arg-type]
    for busy_seconds, pixels in ((2.0, 1000), (2.01, 9000), (3.0, 3000)):
        site.take(SiteReport(busy_seconds=busy_seconds, pixels=pixels))
    assert site.load().rate == pytest.approx(500 + 0.3 * (2000 - 500))

    clock, now = SimpleNamespace(monotonic=lambda: now, time=time.time), 0.0
    monkeypatch.setattr("pipeline.live.member.time", clock)
    member = Member("a", parse_address("rtsp://a/b"))
    live = CameraStatus("a", "", "live", (StateChange(0.0, "live", ""),), changes={"live": 1})
    for now, frames, stale in ((0.0, 0, 0), (10.0, 40, 10), (11.0, 90, 0), (20.0, 130, 20)):  # noqa: B007
        member.update(replace(live, frames=frames, dropped={"stale": stale}), 100)
    assert member.demand(settled=True).demand == pytest.approx(500 + 0.5 * (1000 - 500))


def test_what_a_fleet_adds_up() -> None:
    """A camera's figures are those of all its sites, and begin at none of them anew."""
    from pipeline.live.address import parse_address
    from pipeline.live.member import Member

    member = Member("a", parse_address("rtsp://a/b"))
    member.arrive("A")
    member.update(CameraStatus("a", "", "live", frames=10, dropped={"stale": 2}, resets=1), 1)
    member.leave()
    assert (member.status().frames, member.status().dropped) == (10, {"stale": 2})
    member.arrive("B", zero=CameraStatus("a", "", "live", dropped={"preparing": 7}, reconnects=1))
    assert (member.status().frames, member.status().reconnects) == (10, 0)
    member.update(
        CameraStatus("a", "", "live", frames=5, dropped={"preparing": 7, "stale": 1}, reconnects=1),
        1,
    )
    status = member.status()
    assert (status.frames, status.dropped, status.resets) == (15, {"stale": 3}, 1)
    member.leave(CameraStatus("a", "", "live", frames=6, dropped={"preparing": 7}, reconnects=2))
    assert (member.status().frames, member.status().reconnects) == (16, 1)
