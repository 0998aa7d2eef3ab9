"""One worker thread for a model, with a bounded number of requests before it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """As many requests as are allowed are waiting already."""


class WorkQueue:
    """Runs work one piece after another on a thread of its own: a model uses all cores for one track as it is."""

    def __init__(self, most: int) -> None:
        """Allows `most` requests at once."""
        self.most, self.n_open = most, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place while a request is read and answered; raises BusyError where none is free."""
        if self.n_open >= self.most:
            raise BusyError
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what the work returns; work that has not begun when its caller gives up is never begun."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Waits for the work in hand and drops the rest."""
        self._thread.shutdown(wait=True, cancel_futures=True)
