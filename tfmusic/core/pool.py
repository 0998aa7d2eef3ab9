"""Many independent pieces of work on the processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tfmusic.errors import UsageError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def run_all(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yields every item with the result of a function, in the order in which they finish.

    Args:
        function: at the top level of a module, so that workers can import it.
        items: its arguments.
        workers: processes; with one, or for a single item, everything runs in this process.

    Raises:
        UsageError: a worker was killed.
    """
    if workers == 1 or len(items) < 2:
        return ((item, function(item)) for item in items)
    return _run_pool(function, items, workers)


def map_in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Iterator[_Result]:
    """Yields the results of a function in the order of its arguments, a few of which are worked on ahead.

    Args:
        function: at the top level of a module, so that workers can import it.
        items: its arguments.
        workers: processes; with one everything runs in this process.

    Raises:
        UsageError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[_Result]] = deque()
    with _pool(workers) as pool:
        for item in items:
            with _interrupts_ignored():
                ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:  # more would only take memory
                yield _result(ahead.popleft())
        while ahead:
            yield _result(ahead.popleft())


def _run_pool(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    with _pool(min(workers, len(items))) as pool:
        with _interrupts_ignored():  # workers inherit this from their first instruction
            futures: dict[Future[_Result], _Item] = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], _result(future)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[_Result]) -> _Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UsageError(
            "a worker process was killed from outside, usually for lack of memory: pass a lower --workers;"
            " what is finished is kept"
        ) from error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Leaves Ctrl-C to the parent, which lets running work finish."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """Makes the worker end when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
