"""Work on a local process pool: shards, and whatever else is done to many things, each on its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tfmusic.console import console
from tfmusic.errors import UsageError
from tfmusic.records.build.beam import BeamRun, run_beam
from tfmusic.records.build.shard import ShardResult, ShardSpec
from tfmusic.records.build.sinks import InFolder, Place

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def write_all(
    specs: Sequence[ShardSpec],
    done: Mapping[str, ShardResult],
    workers: int,
    beam: BeamRun | None = None,
    place: Place = InFolder(),  # noqa: B008 - it never changes
) -> list[ShardResult]:
    """Returns the results of all shards in the order of the specs; `done` ones are not written again."""
    todo = [spec for spec in specs if spec.path.name not in done]
    results = dict(done)
    total = sum(len(spec.tracks) for spec in specs)
    with console.progress("records", total, "tracks") as progress:
        progress.advance(total - sum(len(spec.tracks) for spec in todo))
        on_beam = beam and zip(todo, run_beam(todo, place.write, place.read, beam, workers), strict=True)
        for spec, result in on_beam or run_all(place.write, todo, workers):
            results[result.shard.file] = result
            progress.advance(len(spec.tracks))
    return [results[spec.path.name] for spec in specs]


def run_all(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yields every item with what a function at the top of a module makes of it, as they are done.

    Raises:
        UsageError: a worker was killed.
    """
    return _run_here(function, items) if workers == 1 or len(items) < 2 else _run_pool(function, items, workers)


def _run_here(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[tuple[_Item, _Result]]:
    for item in items:
        yield item, function(item)


def _run_pool(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_start_worker)
    with _interrupts_ignored():  # the workers inherit it, from before their first instruction
        futures: dict[Future[_Result], _Item] = {pool.submit(function, item): item for item in items}
    try:
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise UsageError(
                    "a worker process was killed from outside, for want of memory as a rule: pass a lower --workers;"
                    " what is finished is kept"
                ) from error
            yield futures[future], result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Leaves Ctrl-C to the parent alone, which lets running shards end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """Ends the worker with its parent, however that ends."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
