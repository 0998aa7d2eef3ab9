"""Who may talk to the server, and how much they may send; checked before a body is read."""

import asyncio
import contextlib
import hmac
import resource
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

OPEN_PATHS = ("/", "/style.css", "/page.css", "/page.js", "/health", "/ready")

GRACE_S = 10.0  # before a body must have come at the least pace
LEAST_BYTES_PER_S = 32 << 10  # 32 KiB

_MOST_DRAINED = 256 << 20  # 256 MiB
_DRAIN_S = 10

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """An ASGI layer around the application.

    Attributes:
        app: what is guarded.
        hosts: values of the Host header that are ours, in lower case; empty where a token guards instead. A page of
            another site whose name was turned to our address (DNS rebinding) sends its own name.
        token: what a request must bear, or None.
        max_bytes: of a body.
        grace_s: seconds before a body must have come at `LEAST_BYTES_PER_S`, as slow ones hold up others.
    """

    app: ASGIApp
    hosts: Collection[str]
    token: str | None
    max_bytes: int
    grace_s: float = GRACE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 4xx for what may not pass, else lets the application answer; adds the headers of every answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received, is_whole, begin_s = 0, False, time.monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        async def receive_within_limit() -> Message:
            nonlocal received, is_whole
            if is_whole:  # all that may still come is that the client goes
                return await receive()
            late_s = begin_s + max(self.grace_s, received / LEAST_BYTES_PER_S + self.grace_s / 2)
            try:
                async with asyncio.timeout(late_s - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > self.max_bytes:
                await _drain(receive)
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        refused = self._refuse(scope)
        if refused is not None:
            await _drain(receive)
            await refused(scope, receive, send_with_headers)
            return
        await self.app(scope, receive_within_limit, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.hosts and host not in self.hosts:
            return problem(421, f"the Host header must be one of {', '.join(sorted(self.hosts))}")
        if scope["method"] not in ("GET", "HEAD") and not _is_same_origin(headers, host):
            return problem(403, "requests of pages of other sites are refused")
        if self.token is not None and scope["path"] not in OPEN_PATHS and not self._bears_token(headers):
            return problem(401, "must bear the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        if "transfer-encoding" in headers and "content-length" in headers:  # which a proxy may read the other way
            return problem(400, "the length of a body must be stated in one way", {"Connection": "close"})
        length = headers.get("content-length", "0")
        is_fine = length.isdecimal() and int(length) <= self.max_bytes
        return None if is_fine else problem(413, self._too_large, {"Connection": "close"})

    def _bears_token(self, headers: Headers) -> bool:
        assert self.token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def _too_large(self) -> str:
        return f"a request must be at most {self.max_bytes >> 20} MiB"

    @property
    def _too_slow(self) -> str:
        return f"a request must come at {LEAST_BYTES_PER_S >> 10} KiB/s or more"


async def _drain(receive: Receive) -> None:
    """Takes in the rest of a body, within bounds: a client that is still sending would not read its answer."""
    left = _MOST_DRAINED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def problem(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as JSON: {"error": why}."""
    return JSONResponse({"error": why}, status, headers)


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Returns whether a request is of our own page, or of no browser."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.lower() in (f"http://{host}", f"https://{host}")


HEAD_S = 10.0  # for a request to say what it wants
_KEEP_ALIVE_S = 5
_SHUTDOWN_S = 10
_MOST_CONNECTIONS = 1024
_OTHER_FILES = 128  # that a process with TensorFlow has open beside its connections


def server_config(app: ASGIApp, *, head_s: float = HEAD_S) -> uvicorn.Config:
    """Returns how uvicorn serves the application.

    HTTP/1.1 alone, by h11, which refuses what two parsers could read in two ways; no WebSockets, and no trust in what
    headers say of other addresses.
    """
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, proxy_headers=False, ws="none",
        http=_protocol(head_s), timeout_graceful_shutdown=_SHUTDOWN_S, timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=max(min(_MOST_CONNECTIONS, most_files - _OTHER_FILES), 64),
    )  # fmt: skip


def _protocol(head_s: float) -> type[asyncio.Protocol]:
    """Returns the protocol that closes a connection whose request has not begun in time."""

    class ImpatientProtocol(H11Protocol):
        """HTTP/1.1 as uvicorn speaks it, for clients that come to the point."""

        head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._await_head()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self.head_timer is None:  # what comes drop by drop gets no more time
                self.head_timer = self.loop.call_later(head_s, self.transport.close)

        def _stop_waiting(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None

    return ImpatientProtocol
