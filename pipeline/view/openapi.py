"""The OpenAPI document of the view's API, made from the same models that check what comes and goes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeline import __version__
from pipeline.view.api import Failure, NewStream, Stream, Streams, beginnings
from pipeline.view.playback import Change, Playback, Step, Timeline


def openapi(schemes: tuple[str, ...], replays: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        schemes: what the URL of an added camera may begin with.
        replays: the cameras are those of a recorded session, which is played.
    """
    kinds: tuple[type[BaseModel], ...] = (NewStream, Streams, Stream, Failure)
    paths = _stream_paths(schemes)
    if replays:
        del paths["/api/streams"]["post"]  # it has the cameras that were recorded
        kinds = (*kinds[1:], Playback, Change, Step, Timeline)
        paths |= _playback_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roadmask live view",
            "version": __version__,
            "description": "A recorded session: its cameras, and where and how fast it is played."
            if replays
            else "Cameras of a live run: list, add and remove them while it runs.",
        },
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(kinds),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "roadmask_<port>"},
            },
        },
    }


def _stream_paths(schemes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "/api/streams": {"get": _list_operation(), "post": _add_operation(schemes)},
        "/api/streams/{name}": {
            "parameters": [_NAME_PARAMETER],
            "get": _operation("showStream", "One camera", {"200": _answer("Stream")}, "404"),
            "delete": _operation(
                "removeStream",
                "Stop and forget a camera",
                {"204": {"description": "It is gone."}},
                "404",
            ),
        },
    }


def _playback_paths() -> dict[str, Any]:
    done = {"200": _answer("Playback")}
    change = _operation("changePlayback", "Play, pause, seek, change the speed", done, *_BODY)
    change["description"] = "What is not given stays as it is; a seek also brings the memory there."
    step = _operation("stepPlayback", "Pause, and go one frame on or back", done, *_BODY)
    step["description"] = "The next, or the last, frame of all cameras."
    return {
        "/api/playback": {
            "get": _operation("showPlayback", "Where the replay is", done),
            "patch": change | _body("Change", {"position_seconds": 12.5, "paused": False}),
        },
        "/api/playback/step": {"post": step | _body("Step", {"frames": -1})},
        "/api/playback/timeline": {
            "get": _operation(
                "showTimeline", "What happened when: states, gaps and drops",
                {"200": _answer("Timeline")},
            )
        },
    }  # fmt: skip


_NAME_PARAMETER = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The camera's name.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64},
    "example": "front",
}


def _list_operation() -> dict[str, Any]:
    return _operation("listStreams", "All cameras", {"200": _answer("Streams")})


def _add_operation(schemes: tuple[str, ...]) -> dict[str, Any]:
    operation = _operation("addStream", "Add a camera", {"201": _answer("Stream")}, "409", *_BODY)
    operation["description"] = f"Its URL begins with {beginnings(schemes)}."
    example = {
        "url": f"{schemes[0] if schemes else 'rtsp'}://camera.example/stream",
        "name": "front",
    }
    return operation | _body("NewStream", example)


def _body(schema: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(schema), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_BODY = ("413", "415", "422")
_FAILURES = {
    "400": "The request is malformed.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from another site's page.",
    "404": "There is no such camera.",
    "409": "There is a camera of this name.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "The Host header names another machine.",
    "422": "The body does not say what can be done.",
}


def _operation(name: str, what: str, answers: dict[str, Any], *failures: str) -> dict[str, Any]:
    codes = sorted({"400", "401", "403", "421", *failures})
    return {
        "operationId": name,
        "summary": what,
        "responses": answers | {code: _answer("Failure", _FAILURES[code]) for code in codes},
    }


def _answer(schema: str, description: str = "Done.") -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _reference(schema)}},
    }


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _schemas(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return schemas
