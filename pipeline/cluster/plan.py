"""What a job is, before anybody works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.cluster.storage import is_remote
from pipeline.engines import EngineChoice
from pipeline.stages import Job

# Why streams of a GPU share a process, where they do.
STAY = "frames decoded on the GPU stay there, beside the one network"


class Teller(Protocol):
    """What the user sees of a job beside its events."""

    def begin(self, sources: int) -> None: ...

    def warn(self, line: str) -> None: ...

    def say(self, line: str) -> None: ...

    def far(self, share: float) -> None:
        """How much of the whole job is done, 0 to 1, by the sources' bytes."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, sources: int) -> None:
        pass

    def warn(self, line: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def far(self, share: float) -> None:
        pass


@dataclass(frozen=True)
class Hands:
    """Where a job's sources are worked on at once, of one kind.

    Attributes:
        choice: the engine there.
        name, reason: of the placement.
        lanes: sources at once.
        together: how many of them share a process.
        engines: how many engines of one size a process may have.
        form_sha256: of the model's form that the engine reads.
    """

    choice: EngineChoice
    name: str
    reason: str
    lanes: int
    together: int = 1
    engines: int = 1
    form_sha256: str | None = None


@dataclass(frozen=True)
class FarPlan:
    """A job that has been checked as far as it can be from here.

    Attributes:
        sources: as the user named them.
        out: folder or address for the results.
        model, engine, precision, placement: as the user asked.
        weights_sha256: of the model's weights.
        address: of the Ray cluster, None for one of our own.
        resume: do what an earlier run of the same has left.
        tries: failures after which a source is put aside.
        segmenters: of each GPU.
        hwaccel: kind of device that decodes, None for the cores.
        make_job: the job for certain hands.
        warnings: what the user should know before anything runs, a line each.
    """

    sources: tuple[str, ...]
    out: str
    model: str
    engine: str
    precision: str
    placement: str
    weights_sha256: str
    address: str | None
    resume: bool
    tries: int
    segmenters: int
    hwaccel: str | None
    make_job: Callable[[Hands], Job]
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> None:
        """Nobody knows how many sources there are before they have been listed."""

    @property
    def status_folder(self) -> Path | None:
        """Where a status of the run may lie, if that is a folder."""
        return None if is_remote(self.out) else Path(self.out)


@dataclass
class Scene:
    """What those who find the hands for a job must know of it, and what they tell.

    Attributes:
        plan: the job.
        teller: what the user sees.
        stop: asked a few times a second.
        token: address and content of a small file in the output folder that all nodes must see.
        roots: what the sources were found under.
        sources: how many there are to work on.
        nodes: names of those that work on it, filled as they come.
        left_out: why others do not, a line each.
    """

    plan: FarPlan
    teller: Teller
    stop: Callable[[], bool]
    token: tuple[str, bytes]
    roots: tuple[str, ...]
    sources: int
    nodes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
