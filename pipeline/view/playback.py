"""Playing a recorded session from the page and by the JSON API: play, pause, step, seek, speed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, cast

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.live.hub import Hub
from pipeline.session.timeline import Timeline as SessionTimeline
from pipeline.view.api import read_body

SLOWEST, FASTEST = 0.01, 1000.0


class Player(Protocol):
    """What plays a session. Every method may be called from any thread, and may take seconds."""

    duration_seconds: float

    @property
    def position_seconds(self) -> float: ...

    @property
    def speed(self) -> float: ...

    @property
    def paused(self) -> bool: ...

    @property
    def preparing(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    def play(self) -> None: ...

    def pause(self) -> None: ...

    def step(self) -> float: ...

    def step_back(self) -> float: ...

    def seek(self, seconds: float) -> None: ...

    def set_speed(self, speed: float) -> None: ...


class ReplayHub(Hub, Protocol):
    """A hub whose cameras are those of a session that is played."""

    playback: Player | None
    timeline: SessionTimeline


def replay_of(hub: Hub) -> ReplayHub | None:
    """The hub, if something is played that can be steered; None if its cameras are live."""
    return cast(ReplayHub, hub) if getattr(hub, "playback", None) is not None else None


Speed = Annotated[
    float | Literal["max"],
    Field(description="Seconds of the session a second, or max: as fast as can be."),
]


class Playback(BaseModel):
    """Where a replay is, and how it goes on."""

    position_seconds: Annotated[float, Field(description="From the session's beginning.")]
    duration_seconds: float
    began_at: Annotated[float, Field(description="Seconds since 1970 at its beginning.")]
    speed: Speed
    paused: bool
    preparing: Annotated[
        bool, Field(description="Frames up to the position are still being labelled; time stands.")
    ]
    ended: Annotated[bool, Field(description="No camera has a further frame.")]


class Change(BaseModel):
    """What is to be otherwise; what is not given stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    paused: bool | None = None
    position_seconds: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Where to go on; the end if beyond it."),
    ] = None
    speed: Annotated[
        Annotated[float, Field(ge=SLOWEST, le=FASTEST)] | Literal["max"] | None,
        Field(description="Seconds of the session a second, or max: as fast as can be."),
    ] = None


def _no_truth(value: object) -> object:
    """In Python true is 1, in JSON it is not."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


class Step(BaseModel):
    """One frame on, or back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    frames: Annotated[
        Literal[1, -1], BeforeValidator(_no_truth), Field(description="1 for on, -1 for back.")
    ] = 1


class Span(BaseModel):
    """A part of the session, in seconds from its beginning."""

    from_seconds: float
    to_seconds: float
    what: Annotated[str, Field(description="A state, gap or dropped.")]
    reason: str
    frames: Annotated[int, Field(description="Dropped in it.")]


class CameraTimeline(BaseModel):
    """What happened to one camera."""

    name: str
    states: list[Span]
    gaps: Annotated[list[Span], Field(description="Silences.")]
    drops: Annotated[list[Span], Field(description="Frames not labelled; near ones together.")]


class Timeline(BaseModel):
    """What happened in the session, and when."""

    complete: Annotated[bool, Field(description="All logs have been read.")]
    duration_seconds: float
    cameras: list[CameraTimeline]


def playback_json(replay: ReplayHub) -> dict[str, Any]:
    """A `Playback` for JSON."""
    player = replay.playback
    assert player is not None
    return {
        "position_seconds": round(player.position_seconds, 4),
        "duration_seconds": round(player.duration_seconds, 4),
        "began_at": round(replay.timeline.began_at, 3),
        "speed": "max" if math.isinf(player.speed) else player.speed,
        "paused": player.paused,
        "preparing": player.preparing,
        "ended": player.ended,
    }


class PlaybackApi:
    """Handlers of `/api/playback`."""

    def __init__(self, replay: ReplayHub, changed: Callable[[], Any]) -> None:
        """`changed` is awaited after every change, so that all viewers learn of it at once."""
        self._replay, self._changed = replay, changed
        self._busy = asyncio.Lock()  # one at a time: a seek may take seconds

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get("/api/playback", self.show, allow_head=False),
            web.patch("/api/playback", self.change),
            web.post("/api/playback/step", self.step),
            web.get("/api/playback/timeline", self.timeline, allow_head=False),
        ]

    async def show(self, _request: web.Request) -> web.Response:
        """Where it is."""
        return web.json_response(await asyncio.to_thread(playback_json, self._replay))

    async def change(self, request: web.Request) -> web.Response:
        """Play, pause, seek, change the speed."""
        wanted = await read_body(request, Change)
        return await self._do(lambda player: _apply(player, wanted))

    async def step(self, request: web.Request) -> web.Response:
        """One frame on or back."""
        wanted = await read_body(request, Step)
        return await self._do(lambda p: p.step() if wanted.frames > 0 else p.step_back())

    async def timeline(self, _request: web.Request) -> web.Response:
        """What happened when."""
        return web.json_response(await asyncio.to_thread(_timeline_json, self._replay))

    async def _do(self, command: Callable[[Player], object]) -> web.Response:
        player = self._replay.playback
        assert player is not None
        async with self._busy:
            await asyncio.to_thread(command, player)
        await self._changed()
        return web.json_response(await asyncio.to_thread(playback_json, self._replay))


def _apply(player: Player, wanted: Change) -> None:
    if wanted.paused:
        player.pause()
    if wanted.speed is not None:
        player.set_speed(math.inf if wanted.speed == "max" else wanted.speed)
    if wanted.position_seconds is not None:
        player.seek(wanted.position_seconds)
    if wanted.paused is False:
        player.play()


def _timeline_json(replay: ReplayHub) -> dict[str, Any]:
    timeline, player = replay.timeline, replay.playback
    assert player is not None
    timeline.start()
    end = player.duration_seconds
    cameras = [
        {
            "name": name,
            "states": _spans_json(camera.state_spans(end)),
            "gaps": _spans_json(camera.gap_spans()),
            "drops": _spans_json(camera.drop_spans(end)),
        }
        for name, camera in timeline.cameras.items()
    ]
    return {"complete": timeline.complete, "duration_seconds": end, "cameras": cameras}


def _spans_json(spans: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "from_seconds": round(span.start, 3),
            "to_seconds": round(span.end, 3),
            "what": span.text,
            "reason": span.reason,
            "frames": span.frames,
        }
        for span in spans
    ]
