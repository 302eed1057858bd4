"""The JSON API: cameras listed, added and removed while running."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError, PipelineError
from pipeline.live.address import parse_address
from pipeline.live.hub import CAMERA_STATES, CameraStatus, Hub
from pipeline.view.wire import camera_json, first_line

NAME_PATTERN = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
LARGEST_BODY_BYTES = 16_384
Body = TypeVar("Body", bound=BaseModel)


class NewStream(BaseModel):
    """A camera to be added."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    url: Annotated[str, Field(min_length=1, max_length=2048, description="Where the camera is.")]
    name: Annotated[
        str | None,
        Field(
            pattern=NAME_PATTERN,
            description="Unique name of up to 64 letters, digits, _, - and . ; made up if not given.",
        ),
    ] = None


class StateChange(BaseModel):
    """A change of a camera's state."""

    at: Annotated[float, Field(description="Seconds since 1970.")]
    state: str
    reason: str


class Stream(BaseModel):
    """A camera as it is now."""

    name: str
    url: Annotated[str, Field(description="As given, without its password.")]
    state: Annotated[str, Field(json_schema_extra={"enum": list(CAMERA_STATES)})]
    history: Annotated[list[StateChange], Field(description="Latest changes, oldest first.")]
    size_hw: Annotated[
        list[int] | None, Field(description="Height and width of its frames, pixels.")
    ]
    fps: Annotated[float, Field(description="Labelled frames a second, last seconds.")]
    latency_ms: Annotated[float | None, Field(description="From capture to labels, median.")]
    latency_p95_ms: Annotated[float | None, Field(description="The same, 95 of 100 were faster.")]
    frames: Annotated[int, Field(description="Labelled since the camera was added.")]
    dropped: Annotated[dict[str, int], Field(description="Frames not labelled, by reason.")]
    reconnects: int
    resets: Annotated[int, Field(description="How often the network's memory was reset.")]
    shares: Annotated[
        list[float] | None, Field(description="Share of each class in the newest frame, 0 to 1.")
    ]


class Streams(BaseModel):
    """All cameras, and what their class ids mean."""

    classes: list[str]
    streams: list[Stream]


class Failure(BaseModel):
    """Why a request was not done, in one line."""

    error: str


class StreamsApi:
    """Handlers of `/api/streams`."""

    def __init__(self, hub: Hub, schemes: tuple[str, ...]) -> None:
        """`schemes`: what the URL of an added camera may begin with."""
        self._hub, self._schemes = hub, schemes

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get("/api/streams", self.list, allow_head=False),
            web.post("/api/streams", self.add),
            web.get("/api/streams/{name}", self.show, allow_head=False),
            web.delete("/api/streams/{name}", self.remove),
        ]

    async def list(self, _request: web.Request) -> web.Response:
        """All cameras."""
        cameras = await asyncio.to_thread(self._hub.cameras)
        streams = [camera_json(camera) for camera in cameras]
        return web.json_response({"classes": list(self._hub.spec.classes), "streams": streams})

    async def show(self, request: web.Request) -> web.Response:
        """One camera."""
        camera = await self._find(request.match_info["name"])
        return web.json_response(camera_json(camera))

    async def add(self, request: web.Request) -> web.Response:
        """Add a camera."""
        wanted = await read_body(request, NewStream)
        taken = {camera.name for camera in await asyncio.to_thread(self._hub.cameras)}
        if wanted.name in taken:
            raise failure(web.HTTPConflict, "there is a stream of this name")
        try:
            check_url(wanted.url, self._schemes)
            name = await asyncio.to_thread(self._hub.add, wanted.url, wanted.name)
        except PipelineError as error:
            said = scrub(str(error), wanted.url)
            raise failure(web.HTTPUnprocessableEntity, said) from error
        camera = await self._find(name)
        return web.json_response(
            camera_json(camera), status=201, headers={"Location": f"/api/streams/{name}"}
        )

    async def remove(self, request: web.Request) -> web.Response:
        """Remove a camera."""
        name = request.match_info["name"]
        try:
            await asyncio.to_thread(self._hub.remove, name)
        except KeyError as error:
            raise failure(web.HTTPNotFound, "there is no such stream") from error
        return web.Response(status=204)

    async def _find(self, name: str) -> CameraStatus:
        for camera in await asyncio.to_thread(self._hub.cameras):
            if camera.name == name:
                return camera
        raise failure(web.HTTPNotFound, "there is no such stream")


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """The body of a request, as JSON of this kind. Raises web.HTTPException, with why in one line."""
    if request.content_type != "application/json":
        raise failure(web.HTTPUnsupportedMediaType, "expected application/json")
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        raise failure(web.HTTPUnprocessableEntity, first_line(error)) from error


def check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Raises ConfigError, without the URL's password, unless a camera from outside may be there."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in schemes:
        raise ConfigError(f"a stream's URL must begin with {beginnings(schemes)}")
    parse_address(url)


def beginnings(schemes: tuple[str, ...]) -> str:
    """What URLs may begin with, for people."""
    return ", ".join(f"{scheme}://" for scheme in schemes) or "nothing: none may be added"


def scrub(message: str, url: str) -> str:
    """A message without the URL's secrets, whoever wrote it."""
    try:
        return parse_address(url).scrub(message)
    except PipelineError:
        return message.replace(url, "the URL")


def failure(kind: type[web.HTTPException], error: str, **headers: str) -> web.HTTPException:
    """An HTTP error whose body is a `Failure`."""
    text = json.dumps({"error": error})
    return kind(text=text, content_type="application/json", headers=headers)
