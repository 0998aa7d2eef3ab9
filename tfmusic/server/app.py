"""The server of `tfmusic serve`: a page to try a model, and its answers as JSON."""

import asyncio
import errno
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tfmusic import reports
from tfmusic.console import console
from tfmusic.core.files import parse_json
from tfmusic.datasets.metadata import tokens_of
from tfmusic.errors import DataError
from tfmusic.features.extracted import write_feature
from tfmusic.features.read import read_feature
from tfmusic.inference.predictor import Predictor
from tfmusic.server.guard import Guard, problem
from tfmusic.server.openapi import openapi
from tfmusic.server.requests import BusyError, WorkQueue

MAX_FILES = 20
RETRY_AFTER_S = "5"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)  # on the disk, or for another open file

_PAGE = Path(__file__).parent / "page"
_STYLE = Path(reports.__file__).parent / "templates" / "style.css"


@dataclass
class Limits:
    """What a request may cost: MiB of its body, requests at once, seconds to its answer, minutes of a track."""

    max_mib: int
    queue: int
    time_limit_s: float
    max_minutes: float = 30.0


class Server:
    """The routes around one model."""

    def __init__(self, predictor: Predictor, limits: Limits, *, has_token: bool) -> None:
        self.predictor, self.limits = predictor, limits
        self.queue = WorkQueue(limits.queue)
        self.is_ready = False
        title = f"tfmusic {predictor.contract.task}"
        self.described = openapi(title, limits.max_mib, MAX_FILES, has_token=has_token)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Warms up while the server answers `/health` already; at the end waits for the track in hand."""
        warming = asyncio.create_task(self._warm_up())
        warming.add_done_callback(_tell_failure)
        try:
            yield
        finally:
            warming.cancel()
            self.queue.close()

    async def _warm_up(self) -> None:
        contract = self.predictor.contract
        silence = np.zeros((contract.n_bins, contract.frames), np.float32)
        await self.queue.run(partial(self.predictor.answer, silence))
        self.is_ready = True

    async def health(self, _: Request) -> Response:
        """Says that the server runs."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Says whether the model has answered once."""
        return JSONResponse(
            {"status": "ready"} if self.is_ready else {"status": "warming up"}, 200 if self.is_ready else 503
        )

    async def card(self, _: Request) -> Response:
        """Returns the model card."""
        return JSONResponse(self.predictor.card)

    async def openapi(self, _: Request) -> Response:
        """Returns the description of the server."""
        return JSONResponse(self.described)

    async def predict(self, request: Request) -> Response:
        """Answers for the files of a form."""
        try:
            with self.queue.place():
                async with asyncio.timeout(self.limits.time_limit_s):
                    return await self._predict(request)
        except ClientDisconnect:
            return problem(400, "the request ended before its body")
        except BusyError:
            return problem(503, "too many requests are waiting: try again", {"Retry-After": RETRY_AFTER_S})
        except TimeoutError:
            return problem(503, f"no answer within {self.limits.time_limit_s:g} s", {"Retry-After": RETRY_AFTER_S})
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            console.warn(f"no room for what is uploaded: {error.strerror}")
            return problem(503, "this machine has no room for the files now: try again", {"Retry-After": RETRY_AFTER_S})

    async def _predict(self, request: Request) -> Response:
        try:
            async with request.form(max_files=MAX_FILES, max_fields=2, max_part_size=1 << 16) as form:
                files = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
                if not files:
                    return problem(422, "a form (multipart/form-data) must hold at least one file named files")
                tokens = _read_tokens(form)
                # A folder of its own: names that others gave never become paths.
                with tempfile.TemporaryDirectory(prefix="tfmusic-") as folder:
                    # Of this folder, whatever others have put above it.
                    write_feature(Path(folder), self.predictor.contract.feature, {})
                    return await self._answer_files(files, tokens, Path(folder))
        except DataError as error:
            return problem(422, str(error))
        except UnicodeError:
            return problem(400, "the form must be in UTF-8")

    async def _answer_files(self, files: Sequence[UploadFile], tokens: Sequence[str], folder: Path) -> Response:
        told = []
        for i, file in enumerate(files):
            path = folder / f"track{i}{_suffix(file.filename or '')}"
            await asyncio.to_thread(_store, file, path)
            name = (file.filename or "").encode("utf-8", "replace").decode()
            told.append({"file": name} | await self.queue.run(partial(self._answer_file, path, tokens)))
            path.unlink()
        is_any = any("error" not in one for one in told)
        return JSONResponse({"tracks": told}, 200 if is_any else 422)

    def _answer_file(self, path: Path, tokens: Sequence[str]) -> dict[str, Any]:
        try:
            mel = read_feature(path, path.stem, self.predictor.contract.feature)
        except DataError as error:
            return {"error": str(error).replace(str(path), "the file")}
        minutes = mel.shape[1] / self.predictor.contract.frames_per_s / 60
        if minutes > self.limits.max_minutes:  # a few kilobytes can be hours, which would hold up everybody else
            most = self.limits.max_minutes
            return {"error": f"the file: must be at most {most:g} minutes long. Received: {minutes:.1f}"}
        return self.predictor.to_dict(self.predictor.answer(mel, tokens))


def make_app(predictor: Predictor, limits: Limits, *, hosts: Collection[str] = (), token: str | None = None) -> ASGIApp:
    """Returns the ASGI application.

    Args:
        predictor: the model.
        limits: of a request.
        hosts: values of the Host header that are answered; empty for any, which needs a token.
        token: what requests must bear, or None.
    """
    server = Server(predictor, limits, has_token=token is not None)
    pages = {
        "/": _PAGE / "index.html",
        "/style.css": _STYLE,
        "/page.css": _PAGE / "page.css",
        "/page.js": _PAGE / "page.js",
    }
    routes = [
        *(Route(path, _file(file)) for path, file in pages.items()),
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/v1/card", server.card),
        Route("/v1/openapi", server.openapi),
        Route("/v1/predict", server.predict, methods=["POST"]),
    ]
    handlers = {HTTPException: _problem_of, Exception: _fault}
    inner = Starlette(routes=routes, lifespan=server.lifespan, exception_handlers=handlers)
    return Guard(inner, frozenset(host.lower() for host in hosts), token, limits.max_mib << 20)


def _tell_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and warming.exception() is not None:
        console.warn(f"the model could not answer silence, so /ready stays 503: {warming.exception()!r}")


async def _problem_of(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


async def _fault(_: Request, __: Exception) -> Response:
    return problem(500, "a fault of the server; its log has the trace")


def _file(path: Path) -> Any:
    async def send(_: Request) -> Response:
        return FileResponse(path)

    return send


def _read_tokens(form: FormData) -> tuple[str, ...]:
    text = form.get("metadata", "{}")
    try:
        metadata = parse_json(text if isinstance(text, str) else "")
        return tokens_of(dict(metadata))
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f'metadata must be a JSON object such as {{"genres": ["jazz"]}}: {error}') from error


def _suffix(name: str) -> str:
    """Returns the ending of a name that others gave, if it is a plain one."""
    found = re.search(r"\.[a-z0-9]{1,5}$", name.lower(), re.ASCII)
    return found[0] if found else ""


def _store(file: UploadFile, path: Path) -> None:
    with path.open("xb") as target:
        shutil.copyfileobj(file.file, target)
