"""Lanes at work without a cluster: what becomes of sources when nodes go, come, or the user stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError

from pipeline.cluster.crew import Crew
from pipeline.cluster.errands import FarEvent
from pipeline.cluster.feed import Feed, Work
from pipeline.cluster.hands import far_hands
from pipeline.cluster.lanes import Lane, Site
from pipeline.cluster.nodes import Node
from pipeline.cluster.plan import FarPlan, Scene
from pipeline.engines import EngineChoice
from pipeline.run import RunConfig, prepare
from pipeline.sinks import OutputOptions
from pipeline.stages import Job, Progress, RunEvent, SourceReport
from tests.test_cluster import Ears, node_of, retried, some_sources

MOST_ROUNDS = 50


class Place(Site):
    """A node of its own: its lanes finish every source in two rounds, or die with it."""

    lives = True  # type: ignore[assignment]

    def open_lane(self) -> Lane:
        self._opened += 1
        return Hand(self)

    def close(self) -> None:
        pass  # `ray.kill` would start a cluster


class Hand(Lane):
    """A lane that is up at once."""

    def _make(self) -> None:
        self.opening = []

    def start(self, work: Work) -> None:
        self.work, self.generator, self.begun = work, object(), False

    def take(self) -> tuple[FarEvent, ...]:
        assert self.work is not None
        if not self.site.lives:
            return (self.died(RuntimeError("its node is gone")),)
        source = self.work.source
        if not self.begun:
            self.begun = True
            return (Progress(source.stream_id, 4, 5),)
        return (SourceReport(source.stream_id, source.uri, 5),)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, OutputOptions(), "roadnet", EngineChoice("counting", "NumPy", "asked for"))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.crew.ray.wait", lambda refs, **_: (list(refs), []))
    monkeypatch.setattr("pipeline.cluster.crew.NODE_PATIENCE_SECONDS", 0.2)


def names_of(events: list[RunEvent]) -> list[str]:
    return [event.stream_id for event in events if isinstance(event, SourceReport)]


def test_a_node_without_lanes_takes_over_from_the_one_that_had_them(
    tmp_path: Path, job: Job
) -> None:
    """There was one source, so one node had a lane: when it is lost, the other opens its first."""
    first, second = Place(job, 1, True), Place(job, 1, True)
    with retried(tmp_path, job, some_sources(1)) as (feed, _), Crew(feed, lambda: False) as crew:
        crew.add([first, second])
        assert (first.room, second.room) == (0, 1)
        first.lives = False  # type: ignore[misc]
        assert names_of(list(crew.events())) == ["s0"]


def test_a_node_that_goes_after_the_user_has_stopped_starts_nothing(
    tmp_path: Path, job: Job
) -> None:
    first, second = Place(job, 1, True), Place(job, 1, True)
    rounds: list[int] = []

    def newcomers() -> list[Site]:
        rounds.append(1)
        assert len(rounds) < MOST_ROUNDS, "it never ends"
        return []

    with retried(tmp_path, job, some_sources(1)) as (feed, catalogue):
        with Crew(feed, lambda: not first.lives, newcomers=newcomers) as crew:
            crew.add([first, second])
            working = crew.events()
            assert isinstance(next(working), Progress)
            first.lives = False  # type: ignore[misc]
            assert list(working) == []
        assert catalogue.counts().left == 1  # --resume does it


@pytest.mark.parametrize(
    ("engine", "gpus", "kept"),
    [("cpu", 0.0, [False, False]), ("cuda", 0.0, [True, False]), ("cuda", 1.0, [True, True])],
)
def test_who_shared_a_process_that_died_share_the_next_one_where_there_is_one_device(
    tmp_path: Path, job: Job, engine: str, gpus: float, kept: list[bool]
) -> None:
    """A second time each has its own, unless the device was set aside for the one."""
    choice = EngineChoice(engine, "any", "asked for")
    found = []
    with retried(tmp_path, job, some_sources(1)) as (feed, _):
        work = feed.take(())
        assert work is not None
        for _ in range(2):
            work.restarts.count()
            hand = Hand(Place(replace(job, choice=choice), 1, True, gpus=gpus), host="shared")
            hand.work = work
            hand.remake()
            found.append(hand.host is not None)
    assert found == kept


def test_a_process_that_is_still_being_started_again_is_waited_for(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Hand):
        asked = 0

        def _ask(self) -> None:
            self.asked, self.opening = self.asked + 1, ["up?"]

        def _make(self) -> None:
            self._made_at = time.monotonic()
            self._ask()

    def get(refs: object) -> None:
        if lane.asked < 5:
            raise ActorUnavailableError("it is restarting", b"x" * 16)

    monkeypatch.setattr("pipeline.cluster.lanes.ray.wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr("pipeline.cluster.lanes.ray.get", get)
    lane = Asked(Place(job, 1, True))
    assert [lane.opened() for _ in range(5)] == [False] * 4 + [True]
    lane = Asked(Place(job, 1, True))
    monkeypatch.setattr("pipeline.cluster.lanes.LONGEST_START_SECONDS", -1.0)
    with pytest.raises(ActorUnavailableError):
        lane.opened()


class Found:
    """A scout that has found a node, and a small one later."""

    def __init__(self, *_: object) -> None:
        self._late = [node_of("small", 1)]

    def all(self) -> list[Node]:
        return [node_of("big", 8)]

    def new(self) -> list[Node]:
        late, self._late = self._late, []
        return late


def test_a_small_node_that_comes_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of, and the job goes on."""
    asked: list[list[Site]] = []

    class Watched(Crew):
        def __init__(
            self, feed: Feed, stop: Callable[[], bool], tell: Callable[[str], None],
            newcomers: Callable[[], list[Site]],
        ) -> None:  # fmt: skip
            super().__init__(feed, stop, tell)
            asked.append(newcomers())

        def add(self, sites: object) -> None:
            pass

    monkeypatch.setattr("pipeline.cluster.hands.Scout", Found)
    monkeypatch.setattr("pipeline.cluster.hands.Crew", Watched)
    config = RunConfig(("x",), tmp_path, OutputOptions(), address="auto", placement="spread")
    plan = prepare(config)
    assert isinstance(plan, FarPlan)
    ears = Ears()
    scene = Scene(plan, ears, lambda: False, ("token", b""), (), 1)
    job, work = far_hands(scene)
    with retried(tmp_path, job, [], tell=ears.warn) as (feed, _):
        assert list(work(feed)) == []
    line = "node small is left out: its 1 cores are too few"
    assert (asked, ears.warnings) == ([[]], [line])
    assert (scene.nodes, scene.left_out) == (["big"], [line])
