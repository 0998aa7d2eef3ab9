"""How the server takes connections: one HTTP parser, bounded in number and in the time that a request may dawdle."""

import asyncio
import resource
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

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
