"""The JSON responses of the server as pydantic models, and the OpenAPI 3.1 document that is made from them."""

from typing import Any, Literal

from pydantic import BaseModel, RootModel
from pydantic.json_schema import models_json_schema

from tfmusic import __version__
from tfmusic.inference.result import TrackResult


class Track(TrackResult):
    """The prediction for an uploaded file."""

    file: str


class Failed(BaseModel):
    """A file for which there is no prediction, and why."""

    file: str
    error: str


class Predictions(BaseModel):
    """One entry for each uploaded file, in their order."""

    tracks: list[Track | Failed]


class Error(BaseModel):
    """Why a request has no other response, in one line."""

    error: str


class ServedModel(BaseModel):
    """The model of the server."""

    task: str
    kind: str
    labels: list[str]
    input: str


class Models(BaseModel):
    """All models of the server: the one."""

    models: list[ServedModel]


class Status(BaseModel):
    """State of the server."""

    status: Literal["ok", "ready", "warming up"]


class Card(RootModel[dict[str, Any]]):
    """The model card."""


_ERRORS = {
    400: "the body is no form, or cannot be read",
    401: "the token is missing or wrong",
    403: "the request comes from a page of another site",
    408: "the body came too slowly",
    413: "the body is larger than {max_mib} MiB",
    421: "the Host header is not one of this server",
    503: "too many requests are waiting, or the time limit is over: try again after Retry-After seconds",
}


def openapi(title: str, *, max_mib: int, max_files: int, has_token: bool) -> dict[str, Any]:
    """Returns the OpenAPI document of the server, from which clients can be generated."""
    errors = {
        str(status): _response(text.format(max_mib=max_mib), Error)
        for status, text in _ERRORS.items()
        if has_token or status != 401
    }
    predict = {
        "operationId": "predict",
        "summary": "Predictions for whole tracks",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _upload(max_files)},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": _response("a prediction or an error for each file, in their order", Predictions),
            "422": _response("there is no prediction: an error for each file, or one for all", Predictions, Error),
            **errors,
        },
    }
    models: tuple[type[BaseModel], ...] = (Predictions, Error, Status, Card, Models)
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/models": {"get": _get("models", "The model that answers", Models)},
            "/v1/card": {"get": _get("card", "The model card", Card)},
            "/health": {"get": _get("health", "Whether the server runs", Status)},
            "/ready": {"get": _get("ready", "Whether the model is warmed up", Status, "503")},
        },
        "components": {"schemas": schemas["$defs"]},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _upload(max_files: int) -> dict[str, Any]:
    files = {
        "type": "array",
        "maxItems": max_files,
        "items": {"type": "string", "format": "binary"},
        "description": "tracks: spectrograms as .npy, or audio",
    }
    metadata = {"type": "string", "description": 'JSON, metadata of all the tracks: {"genres": ["jazz"]}'}
    return {"type": "object", "required": ["files"], "properties": {"files": files, "metadata": metadata}}


def _response(description: str, *models: type[BaseModel]) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _get(name: str, summary: str, model: type[BaseModel], *other_statuses: str) -> dict[str, Any]:
    responses = {status: _response(summary, model) for status in ("200", *other_statuses)}
    return {"operationId": name, "summary": summary, "responses": responses}
