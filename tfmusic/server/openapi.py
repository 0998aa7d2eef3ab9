"""What the server takes and gives, as OpenAPI 3.1."""

from typing import Any

from tfmusic import __version__

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_SCORES = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}
_PART = {
    "type": "object",
    "required": ["begin_s", "end_s", "labels"],
    "properties": {
        "begin_s": {"type": "number"},
        "end_s": {"type": "number"},
        "labels": _SCORES | {"description": "the strongest labels of the part, the leading one first"},
    },
}
_TIMELINE = {
    "type": "object",
    "required": ["edges_s", "scores"],
    "properties": {
        "edges_s": {"type": "array", "items": {"type": "number"}, "description": "ends of the stretches of time"},
        "scores": {
            "type": "object",
            "description": "by label, a score for every stretch",
            "additionalProperties": {"type": "array", "items": {"type": "number"}},
        },
    },
}
_TRACK = {
    "type": "object",
    "required": ["file", "answer", "scores", "timeline", "parts"],
    "properties": {
        "file": {"type": "string"},
        "task": {"type": "string"},
        "duration_s": {"type": "number"},
        "answer": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "aggregator": {"type": "string"},
        "windows": {"type": "integer"},
        "scores": {"$ref": "#/components/schemas/Scores"},
        "timeline": {"$ref": "#/components/schemas/Timeline"},
        "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
    },
}
_FAILED = {
    "type": "object",
    "required": ["file", "error"],
    "properties": {"file": {"type": "string"}, "error": {"type": "string"}},
}


def openapi(title: str, max_mib: int, max_files: int, *, has_token: bool) -> dict[str, Any]:
    """Returns the description of the server, which clients can be made from."""
    errors = {
        "400": "no form, or one that cannot be read",
        "401": "the token is missing or wrong",
        "403": "a page of another site asked",
        "408": "the body came too slowly",
        "413": f"more than {max_mib} MiB",
        "421": "the Host header is not ours",
        "503": "too many requests are waiting, or the time is over: try again after Retry-After seconds",
    }
    if not has_token:
        del errors["401"]
    responses = {code: _answer(why, "Error") for code, why in errors.items()}
    upload = {
        "type": "object",
        "required": ["files"],
        "properties": {
            "files": {
                "type": "array",
                "maxItems": max_files,
                "items": {"type": "string", "format": "binary"},
                "description": "tracks: spectrograms as .npy, or audio",
            },
            "metadata": {"type": "string", "description": 'JSON of what is known of all of them: {"genres": ["jazz"]}'},
        },
    }
    predict = {
        "operationId": "predict",
        "summary": "Answers for whole tracks",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": upload}}},
        "responses": {
            "200": _answer("an answer for each file, in their order", "Answers"),
            "422": _answer("no file could be answered: an error for each, or one for all", "Answers", "Error"),
            **responses,
        },
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/card": {"get": _get("card", "The model card", "Card")},
            "/health": {"get": _get("health", "Whether the server runs", "Status")},
            "/ready": {"get": _get("ready", "Whether it can answer: 200, or 503 while it warms up", "Status", "503")},
        },
        "components": {
            "schemas": {
                "Answers": {
                    "type": "object",
                    "required": ["tracks"],
                    "properties": {"tracks": {"type": "array", "items": {"oneOf": [_ref("Track"), _ref("Failed")]}}},
                },
                "Track": _TRACK,
                "Failed": _FAILED,
                "Scores": _SCORES,
                "Timeline": _TIMELINE,
                "Part": _PART,
                "Card": {"type": "object"},
                "Status": {"type": "object", "properties": {"status": {"type": "string"}}},
                "Error": _ERROR,
            }
        },
    }
    if has_token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(what: str, *schemas: str) -> dict[str, Any]:
    schema = _ref(schemas[0]) if len(schemas) == 1 else {"oneOf": [_ref(name) for name in schemas]}
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _get(name: str, summary: str, schema: str, *others: str) -> dict[str, Any]:
    responses = {status: _answer(summary, schema) for status in ("200", *others)}
    return {"operationId": name, "summary": summary, "responses": responses}
