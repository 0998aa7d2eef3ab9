"""`tfmusic serve RUN|EXPORT`: a local page to try a model, and its answers as JSON."""

import argparse
import importlib.util
import os
from pathlib import Path

from tfmusic.commands.arguments import positive
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import UsageError

_LOCAL = ("127.0.0.1", "localhost", "::1")
_SHORTEST_TOKEN = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, help="run folder or exported folder")
    parser.add_argument("--task", help="of a model for several tasks, the one to answer")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000; 0 for a free one)")
    parser.add_argument(
        "--token", help="what requests must bear (default the variable TFMUSIC_TOKEN); a must beyond this machine"
    )
    parser.add_argument("--max-minutes", type=positive, default=30, help="minutes that a track may last (default 30)")
    parser.add_argument("--max-mb", type=positive, default=64, help="MiB that a request may hold (default 64)")
    parser.add_argument(
        "--queue", type=positive, default=8, help="requests at once; more are asked to come again (default 8)"
    )
    parser.add_argument(
        "--time-limit", type=positive, default=120, metavar="SECONDS", help="for a request (default 120)"
    )


def run(args: argparse.Namespace) -> None:
    """Loads the model and serves it until it is interrupted."""
    token = args.token or os.environ.get("TFMUSIC_TOKEN") or None
    _check(args, token)
    from tfmusic.console import console

    start_tensorflow()
    import uvicorn

    from tfmusic.inference.explain import check_explainable
    from tfmusic.inference.predictor import load_predictor
    from tfmusic.server.app import Limits, make_app
    from tfmusic.server.guard import server_config

    predictor = load_predictor(args.model, args.task)
    check_explainable(predictor.contract, "serve")
    listener = _listen(args.host, args.port)
    port = listener.getsockname()[1]
    names = ("127.0.0.1", "localhost", "[::1]")
    hosts = [] if token else [f"{name}:{port}" for name in names] + (list(names) if port == 80 else [])
    app = make_app(
        predictor, Limits(args.max_mb, args.queue, args.time_limit, args.max_minutes), hosts=hosts, token=token
    )
    shown = f"[{args.host}]" if ":" in args.host else args.host
    console.show(f"{predictor.contract.task}: http://{shown}:{port}  (Ctrl-C ends it)")
    try:
        uvicorn.Server(server_config(app)).run(sockets=[listener])
    except KeyboardInterrupt:  # which is how a server ends
        pass
    finally:
        listener.close()
    console.say("stopped")


def _check(args: argparse.Namespace, token: str | None) -> None:
    for package in ("starlette", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"serve needs the package {package}: pip install -e '.[serve]'")
    if args.host not in _LOCAL and token is None:
        raise UsageError(
            f"--host {args.host} lets other machines ask, so pass --token, or the variable TFMUSIC_TOKEN, of"
            f" {_SHORTEST_TOKEN} signs or more"
        )
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise UsageError(f"--token must have {_SHORTEST_TOKEN} signs or more. Received: {len(token)}")
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be 0 to 65535. Received: {args.port}")


def _listen(host: str, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - socket is imported late
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    # Connections take this over; asyncio sets it only where the protocol is named. Without it the body of an answer
    # waits 40 ms for the client to acknowledge its head, on every request of a connection but the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
