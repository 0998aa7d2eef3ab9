"""The server of `tfmusic serve`: the page to try a model, and predictions as JSON."""

import asyncio
import errno
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tfmusic import reports
from tfmusic.console import console
from tfmusic.core.files import parse_json
from tfmusic.datasets.metadata import tokens_of
from tfmusic.errors import DataError, UsageError
from tfmusic.features.audio import time_limit
from tfmusic.features.npy import MAGIC as NPY_MAGIC
from tfmusic.features.npy import write_feature
from tfmusic.features.read import read_input
from tfmusic.inference.predictor import Predictor
from tfmusic.server.guard import Guard, error_response, server_config
from tfmusic.server.schemas import Card, Failed, Models, Predictions, ServedModel, Status, Track, openapi

T = TypeVar("T")

MAX_FILES = 20
RETRY_AFTER_S = 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)  # on the disk, or for another open file
_FOLDER = "tfmusic-serve-"  # of a request, with the process after it
_FILE_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last is what curl says
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

_PAGE = Path(__file__).parent / "page"
_STYLE = Path(reports.__file__).parent / "templates" / "style.css"


@dataclass
class Limits:
    """What a request may cost.

    Attributes:
        max_mib: size of the body.
        queue: requests at once.
        time_limit_s: from the first byte of a request to its response.
        max_minutes: length of a track.
    """

    max_mib: int
    queue: int
    time_limit_s: float
    max_minutes: float = 30.0


def serve(
    predictor: Predictor,
    limits: Limits,
    *,
    card: Mapping[str, Any],
    host: str,
    port: int,
    token: str | None,
    access_log: bool = False,
) -> None:
    """Serves a model until Ctrl-C; with a token under any name of the host, without one under local names alone.

    `access_log` prints a line for every request.

    Raises:
        UsageError: the address cannot be listened on.
    """
    listener = listen(host, port)
    port = listener.getsockname()[1]
    hosts = [] if token else [f"{name}:{port}" for name in _LOCAL_NAMES]
    hosts += _LOCAL_NAMES if port == 80 and not token else ()
    app = make_app(predictor, limits, card=card, hosts=hosts, token=token)
    name = f"[{host}]" if ":" in host else host
    console.show(f"{predictor.contract.task}: http://{name}:{port}  (Ctrl-C ends it)")
    _remove_folders_of_killed()
    with listener, suppress(KeyboardInterrupt):
        uvicorn.Server(server_config(app, access_log=access_log)).run(sockets=[listener])
    console.say("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; raises UsageError where the system refuses the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    # Connections inherit this; asyncio sets it only where the protocol is named. Without it the body of a response
    # waits 40 ms for the client to acknowledge the head, on every request of a connection but the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_app(
    predictor: Predictor,
    limits: Limits,
    *,
    card: Mapping[str, Any] | None = None,
    hosts: Collection[str] = (),
    token: str | None = None,
) -> ASGIApp:
    """Returns the ASGI application.

    Args:
        predictor: the model.
        limits: of a request.
        card: the model card; None for the task and its labels alone.
        hosts: accepted values of the Host header; empty for any, which needs a token.
        token: what requests must carry, or None.
    """
    contract = predictor.contract
    about = card or {"task": contract.task, "kind": contract.kind, "labels": list(contract.labels)}
    server = Server(predictor, limits, about, has_token=token is not None)
    pages = {"/": _PAGE / "index.html", "/style.css": _STYLE}
    pages |= {f"/{name}": _PAGE / name for name in ("page.css", "page.js")}
    routes = [
        *(Route(path, _file(file)) for path, file in pages.items()),
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/v1/card", server.card),
        Route("/v1/models", server.models),
        Route("/v1/openapi", server.openapi),
        Route("/v1/predict", server.predict, methods=["POST"]),
    ]
    handlers = {HTTPException: _http_error, Exception: _internal_error}
    inner = Starlette(routes=routes, lifespan=server.lifespan, exception_handlers=handlers)
    return Guard(inner, frozenset(host.lower() for host in hosts), token, limits.max_mib << 20)


class Server:
    """The routes around one model."""

    def __init__(self, predictor: Predictor, limits: Limits, model_card: Mapping[str, Any], *, has_token: bool) -> None:
        self.predictor, self.limits, self.model_card = predictor, limits, model_card
        self.queue = WorkQueue(limits.queue)
        self.is_ready = False
        title = f"tfmusic {predictor.contract.task}"
        self.document = openapi(title, max_mib=limits.max_mib, max_files=MAX_FILES, has_token=has_token)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Warms the model up while `/health` is served already; at the end waits for the current track."""
        warming = asyncio.create_task(self._warm_up())
        warming.add_done_callback(_warn_of_failure)
        try:
            yield
        finally:
            warming.cancel()
            self.queue.close()

    async def _warm_up(self) -> None:
        contract = self.predictor.contract
        silence = np.zeros((contract.n_bins, contract.frames), np.float32)
        await self.queue.run(partial(self.predictor.predict, silence))
        self.is_ready = True

    async def health(self, _: Request) -> Response:
        """Says that the server runs."""
        return _json(Status(status="ok"))

    async def ready(self, _: Request) -> Response:
        """Returns 200 once the model is warmed up, before that 503."""
        return _json(Status(status="ready")) if self.is_ready else _json(Status(status="warming up"), 503)

    async def card(self, _: Request) -> Response:
        """Returns the model card."""
        return _json(Card(dict(self.model_card)))

    async def models(self, _: Request) -> Response:
        """Returns the model that answers: its task, labels and input."""
        contract = self.predictor.contract
        labels = list(contract.labels)
        served = ServedModel(task=contract.task, kind=contract.kind, labels=labels, input=str(contract.feature))
        return _json(Models(models=[served]))

    async def openapi(self, _: Request) -> Response:
        """Returns the OpenAPI document of the server."""
        return JSONResponse(self.document)

    async def predict(self, request: Request) -> Response:
        """Returns the predictions for the files of a form, or for the one file that is the body itself."""
        try:
            with self.queue.place():
                async with asyncio.timeout(self.limits.time_limit_s):
                    return await self._predict(request)
        except ClientDisconnect:
            return error_response(400, "the request ended before its body")
        except BusyError:
            return _try_again("too many requests are waiting")
        except TimeoutError:
            return _try_again(f"the request took more than {self.limits.time_limit_s:g} s")
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            console.warn(f"no room for uploaded files: {error.strerror}")
            return _try_again("this machine has no room for the files now")

    async def _predict(self, request: Request) -> Response:
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in _FILE_TYPES or kind.startswith(("audio/", "video/")):
                tokens = _read_tokens(request.query_params)
                async with _body(request) as file:
                    return await self._predict_files([file], tokens)
            async with request.form(max_files=MAX_FILES, max_fields=2, max_part_size=1 << 16) as form:
                files = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
                if not files:
                    return error_response(
                        422,
                        "the body must be a file, or a form (multipart/form-data) with at least one file named files",
                    )
                return await self._predict_files(files, _read_tokens(form))
        except DataError as error:
            return error_response(422, str(error))
        except UnicodeError:
            return error_response(400, "the form must be in UTF-8")

    async def _predict_files(self, files: Sequence[UploadFile], tokens: Sequence[str]) -> Response:
        tracks: list[Track | Failed] = []
        # A new folder with names of our own: uploaded names never become paths.
        with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as place:
            folder = Path(place)
            # Without this file, read_input would look for one in the folders above.
            write_feature(folder, self.predictor.contract.feature, {})
            for i, file in enumerate(files):
                path = folder / f"track{i}{_suffix(file.filename or '')}"
                await asyncio.to_thread(_link, file, path)
                name = (file.filename or "").encode("utf-8", "replace").decode()
                tracks.append(await self.queue.run(partial(self._predict_file, path, name, tokens)))
                path.unlink()
        has_prediction = any(isinstance(track, Track) for track in tracks)
        return _json(Predictions(tracks=tracks), 200 if has_prediction else 422)

    def _predict_file(self, path: Path, name: str, tokens: Sequence[str]) -> Track | Failed:
        contract = self.predictor.contract
        try:
            with time_limit(self.limits.time_limit_s):  # one thread does all the work: nothing may hold it
                mel = read_input(path, path.stem, contract.feature)
        except DataError as error:
            return Failed(file=name, error=str(error).replace(str(path), "the file"))
        minutes = mel.shape[1] / contract.frames_per_s / 60
        if minutes > self.limits.max_minutes:  # a few kilobytes can be hours of sound, and would hold up other requests
            most = self.limits.max_minutes
            return Failed(file=name, error=f"the file: must be at most {most:g} minutes long. Received: {minutes:.1f}")
        return Track.of(self.predictor.predict(mel, tokens), contract, self.predictor.scorer.aggregator, file=name)


class BusyError(Exception):
    """As many requests as are allowed are waiting already."""


class WorkQueue:
    """Runs the model on one thread, a track after the other, since a single track keeps all cores busy."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests, self.n_open = max_requests, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place while a request is read and served; raises BusyError where none is free."""
        if self.n_open >= self.max_requests:
            raise BusyError
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns; work whose request is over before it starts is dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Waits for the work that runs and drops the rest."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _json(model: BaseModel, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, media_type="application/json")


def _try_again(why: str) -> Response:
    return error_response(503, f"{why}: try again", {"Retry-After": str(RETRY_AFTER_S)})


def _warn_of_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and warming.exception() is not None:
        console.warn(f"the model failed on silence, so /ready stays 503: {warming.exception()!r}")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, error.headers)


async def _internal_error(_: Request, __: Exception) -> Response:
    return error_response(500, "an error inside the server; its log has the trace")


def _file(path: Path) -> Any:
    async def send(_: Request) -> Response:
        return FileResponse(path)

    return send


@asynccontextmanager
async def _body(request: Request) -> AsyncIterator[UploadFile]:
    """Yields the body of a request as a file, under the name in its query or one that tells .npy from sound."""
    begin = b""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as file:
        async for chunk in request.stream():
            begin = begin or chunk[: len(NPY_MAGIC)]
            await asyncio.to_thread(file.write, chunk)
        file.seek(0)
        name = request.query_params.get("name") or ("body.npy" if begin == NPY_MAGIC else "body.wav")
        yield UploadFile(file, filename=name)  # type: ignore[arg-type]


def _read_tokens(form: FormData | QueryParams) -> tuple[str, ...]:
    text = form.get("metadata", "{}")
    try:
        metadata = parse_json(text if isinstance(text, str) else "")
        return tokens_of(dict(metadata))
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f'metadata must be a JSON object such as {{"genres": ["jazz"]}}: {error}') from error


def _suffix(name: str) -> str:
    """Returns the ending of an uploaded file's name, if it is a plain one."""
    match = re.search(r"\.[a-z0-9]{1,5}$", name.lower(), re.ASCII)
    return match[0] if match else ""


def _link(file: UploadFile, path: Path) -> None:
    """Gives an uploaded file a name; under Linux only that of a link, as its bytes lie in one that ends with us."""
    descriptor = file.file.fileno()  # moves an upload that is still in memory to a file without a name
    file.file.flush()
    if sys.platform == "linux":
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    else:
        with path.open("xb") as target:
            shutil.copyfileobj(file.file, target)


def _remove_folders_of_killed() -> None:
    """Removes what servers that were killed have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        with suppress(ValueError, OverflowError, PermissionError):
            try:
                os.kill(int(folder.name.removeprefix(_FOLDER).partition("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
