"""What the server refuses: foreign hosts, origins and tokens, bodies that are too large, clients that are too slow."""

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

GRACE_S = 10.0  # until the pace of a body is checked
MIN_BYTES_PER_S = 32 << 10  # 32 KiB

_MAX_DRAINED = 256 << 20  # 256 MiB
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
        app: the application.
        hosts: accepted values of the Host header, in lower case; empty where a token is needed instead. The page of
            another site whose name resolves to our address (DNS rebinding) sends its own name.
        token: what a request must carry, or None.
        max_bytes: size of a body.
        grace_s: seconds after which a body must have come at `MIN_BYTES_PER_S`, since slow bodies hold places in the
            queue.
    """

    app: ASGIApp
    hosts: Collection[str]
    token: str | None
    max_bytes: int
    grace_s: float = GRACE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Responds with 4xx to what is refused, passes on the rest, and adds the security headers to every response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received, is_complete, begin_s = 0, False, time.monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        async def receive_within_limit() -> Message:
            nonlocal received, is_complete
            if is_complete:  # only the end of the connection can still come
                return await receive()
            late_s = begin_s + max(self.grace_s, received / MIN_BYTES_PER_S + self.grace_s / 2)
            try:
                async with asyncio.timeout(late_s - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received > self.max_bytes:
                await _drain(receive)
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        refusal = self._refuse(scope)
        if refusal is not None:
            await _drain(receive)
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, receive_within_limit, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.hosts and host not in self.hosts:
            return error_response(421, f"the Host header must be one of {', '.join(sorted(self.hosts))}")
        if scope["method"] not in ("GET", "HEAD") and not _is_same_origin(headers, host):
            return error_response(403, "requests from pages of other sites are refused")
        if self.token is not None and scope["path"] not in OPEN_PATHS and not self._has_token(headers):
            return error_response(
                401, "must have the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        if "transfer-encoding" in headers and "content-length" in headers:  # a proxy may read it the other way
            return error_response(
                400, "must have Content-Length or Transfer-Encoding, not both", {"Connection": "close"}
            )
        length = headers.get("content-length", "0")
        is_within_limit = length.isdecimal() and int(length) <= self.max_bytes
        return None if is_within_limit else error_response(413, self._too_large, {"Connection": "close"})

    def _has_token(self, headers: Headers) -> bool:
        assert self.token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def _too_large(self) -> str:
        return f"a request must be at most {self.max_bytes >> 20} MiB"

    @property
    def _too_slow(self) -> str:
        return f"a request must come at {MIN_BYTES_PER_S >> 10} KiB/s or more"


async def _drain(receive: Receive) -> None:
    """Reads the rest of a body, within bounds: a client that is still sending does not read the response."""
    left = _MAX_DRAINED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def error_response(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as JSON: {"error": why}."""
    return JSONResponse({"error": why}, status, headers)


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Returns whether a request comes from our own page, or from no browser."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.lower() in (f"http://{host}", f"https://{host}")


HEAD_S = 10.0  # for the head of a request to arrive
_KEEP_ALIVE_S = 5
_SHUTDOWN_S = 10
_MAX_CONNECTIONS = 1024
_OTHER_FILES = 128  # open in a process with TensorFlow, beside the connections


def server_config(app: ASGIApp, *, head_s: float = HEAD_S) -> uvicorn.Config:
    """Returns the settings of uvicorn.

    HTTP/1.1 alone, parsed by h11, which refuses requests that two parsers could read in two ways; no WebSockets, no
    trust in headers of proxies.
    """
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, proxy_headers=False, ws="none",
        http=_head_timeout_protocol(head_s), timeout_graceful_shutdown=_SHUTDOWN_S, timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=max(min(_MAX_CONNECTIONS, max_files - _OTHER_FILES), 64),
    )  # fmt: skip


def _head_timeout_protocol(head_s: float) -> type[asyncio.Protocol]:
    """Returns the HTTP protocol that closes a connection when the head of a request does not arrive in time."""

    class HeadTimeoutProtocol(H11Protocol):
        """HTTP/1.1 of uvicorn with a timeout for the head."""

        head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._start_timer()
            else:
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            if self.head_timer is None:  # more bytes of the same head do not extend it
                self.head_timer = self.loop.call_later(head_s, self.transport.close)

        def _stop_timer(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None

    return HeadTimeoutProtocol
