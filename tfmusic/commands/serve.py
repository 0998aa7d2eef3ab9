"""`tfmusic serve RUN|EXPORT`: a local page to try a model, and predictions as JSON."""

import argparse
import importlib.util
import os
from pathlib import Path

from tfmusic.commands.arguments import positive
from tfmusic.errors import UsageError

_LOCAL = ("127.0.0.1", "localhost", "::1")
_MIN_TOKEN_LENGTH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, help="run folder or exported folder")
    parser.add_argument("--task", help="of a model for several tasks, the one to serve")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000; 0 for a free one)")
    parser.add_argument(
        "--token",
        help="what requests must carry (default: variable TFMUSIC_TOKEN); needed with --host beyond this machine",
    )
    parser.add_argument("--max-minutes", type=positive, default=30, help="minutes that a track may last (default 30)")
    parser.add_argument("--max-mb", type=positive, default=64, help="MiB that a request may hold (default 64)")
    parser.add_argument("--access-log", action="store_true", help="print a line for every request")
    parser.add_argument("--queue", type=positive, default=8, help="requests at once; further ones get 503 (default 8)")
    parser.add_argument(
        "--time-limit", type=positive, default=120, metavar="SECONDS", help="for a request (default 120)"
    )


def run(args: argparse.Namespace) -> None:
    """Loads the model and serves it until Ctrl-C."""
    token = args.token or os.environ.get("TFMUSIC_TOKEN") or None
    _check(args, token)
    from tfmusic.export.card import read_card
    from tfmusic.inference.explain import check_explainable
    from tfmusic.inference.predictor import load_predictor
    from tfmusic.pretrained.taggers import find_model
    from tfmusic.server.app import Limits, serve

    model = find_model(args.model)
    predictor = load_predictor(model, args.task)
    check_explainable(predictor.contract, "serve")
    limits = Limits(args.max_mb, args.queue, args.time_limit, args.max_minutes)
    card, address = read_card(model, predictor), {"host": args.host, "port": args.port}
    serve(predictor, limits, card=card, token=token, access_log=args.access_log, **address)


def _check(args: argparse.Namespace, token: str | None) -> None:
    for package in ("starlette", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"serve needs the package {package}: pip install 'tfmusic[serve]'")
    if args.host not in _LOCAL and token is None:
        raise UsageError(
            f"--host {args.host} lets other machines connect, so pass --token, or set TFMUSIC_TOKEN, of"
            f" {_MIN_TOKEN_LENGTH} characters or more"
        )
    if token is not None and len(token) < _MIN_TOKEN_LENGTH:
        raise UsageError(f"--token must have {_MIN_TOKEN_LENGTH} characters or more. Received: {len(token)}")
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be 0 to 65535. Received: {args.port}")
