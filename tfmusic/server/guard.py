"""What the server refuses: foreign hosts, origins and tokens, bodies that are too large, clients that are too slow."""

import asyncio
import contextlib
import hmac
import logging
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
                raise HTTPException(413, self._too_large)
            return message

        refusal = self._refuse(scope)
        if refusal is not None:
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
        return None if is_within_limit else error_response(413, self._too_large)

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
_LINGER_S = 3.0  # for a client to stop sending and to take its answer
_MIN_WAIT_S = 1.0  # before a connection may have to make room
_SHUTDOWN_S = 10
_MAX_CONNECTIONS = 1024
_OTHER_FILES = 128  # open in a process with TensorFlow, beside the connections


def server_config(app: ASGIApp, *, head_s: float = HEAD_S, access_log: bool = False) -> uvicorn.Config:
    """Returns the settings of uvicorn.

    HTTP/1.1 alone, parsed by h11, which refuses requests that two parsers could read in two ways; no WebSockets, no
    trust in headers of proxies. The log holds faults of the server, not those of its clients.
    """
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return uvicorn.Config(
        app, log_level="info" if access_log else "error", access_log=access_log,
        server_header=False, proxy_headers=False, ws="none",
        http=_bounded_protocol(head_s), timeout_graceful_shutdown=_SHUTDOWN_S, timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=max(min(_MAX_CONNECTIONS, max_files - _OTHER_FILES), 64),
    )  # fmt: skip


def _bounded_protocol(head_s: float) -> type[asyncio.Protocol]:
    """Returns the HTTP protocol with a clock that runs whenever the server waits for the client.

    A connection ends where `head_s` seconds after its begin or its last answer no head of a request has arrived, where
    an answer is taken at less than `MIN_BYTES_PER_S`, and after an answer to a request whose body is not complete. When
    there are as many connections as are allowed, the one that has waited longest makes room for a new one.
    """
    waiting: dict[Any, float] = {}  # since when, the longest first

    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 of uvicorn, bounded."""

        clock: asyncio.TimerHandle | None = None
        is_ending = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(_GentleTransport(transport, self))  # type: ignore[arg-type]
            for longest, since_s in [*waiting.items()]:
                is_full = self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency
                if not is_full or self.loop.time() - since_s < _MIN_WAIT_S:
                    break
                longest._expire()
                self.connections.discard(longest)
            self._set_clock()

        def data_received(self, data: bytes) -> None:
            if not self.is_ending:  # or else they are dropped: a client that is still sending does not read its answer
                super().data_received(data)
                self._set_clock()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            self.end()

        def on_response_complete(self) -> None:
            if self.conn.their_state is h11.SEND_BODY:
                self.end()
            super().on_response_complete()
            self._set_clock()

        def end(self) -> None:
            """Closes the connection once the client has its answer; one that still sends gets a moment to read it."""
            if self.is_ending:
                return
            self.is_ending = True
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._stop_clock()
            self._set_clock()
            transport = self.transport.real  # type: ignore[attr-defined]
            if self.conn.their_state in (h11.SEND_BODY, h11.ERROR) and not transport.is_closing():
                self.flow.resume_reading()
                with contextlib.suppress(OSError):
                    transport.write_eof()
            else:
                transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self.is_ending = True
            super().connection_lost(exc)
            self._stop_clock()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._set_clock()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._set_clock()

        def _set_clock(self) -> None:
            """Starts the clock where the server waits for the client, and stops it where the client waits."""
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering and not self.flow.write_paused and not self.is_ending:
                self._stop_clock()
            elif self.clock is None:
                seconds = _LINGER_S if self.is_ending else head_s
                seconds += self.transport.get_write_buffer_size() / MIN_BYTES_PER_S
                self.clock = self.loop.call_later(seconds, self._expire)
                waiting[self] = self.loop.time()

        def _expire(self) -> None:
            self._stop_clock()
            self.transport.abort()

        def _stop_clock(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None
                del waiting[self]

    return BoundedProtocol


class _GentleTransport:
    """A transport of asyncio that is closed as its protocol says."""

    def __init__(self, real: Any, protocol: Any) -> None:
        self.real, self.protocol = real, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def close(self) -> None:
        self.protocol.end()

    def is_closing(self) -> bool:
        return bool(self.protocol.is_ending or self.real.is_closing())
