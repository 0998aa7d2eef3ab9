"""Shards on a local process pool."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tfmusic.console import Progress, console
from tfmusic.converter.beam import BeamRun, run_beam
from tfmusic.converter.shard import ShardResult, ShardSpec, write_shard
from tfmusic.errors import UsageError


def write_all(
    specs: Sequence[ShardSpec], done: Mapping[str, ShardResult], workers: int, beam: BeamRun | None = None
) -> list[ShardResult]:
    """Returns the results of all shards in the order of the specs; `done` ones are not written again."""
    todo = [spec for spec in specs if spec.path.name not in done]
    results = dict(done)
    total = sum(len(spec.tracks) for spec in specs)
    with console.progress("records", total, "tracks") as progress:
        progress.advance(total - sum(len(spec.tracks) for spec in todo))
        run = _run_here if workers == 1 or len(todo) < 2 else _run_pool
        here = run_beam(todo, _write_and_note, _read_note, beam, workers) if beam else run(todo, progress, workers)
        for result in here:
            results[result.shard.file] = result
    return [results[spec.path.name] for spec in specs]


def _write_and_note(spec: ShardSpec) -> ShardResult:
    """Writes a shard, and beside it the note that a resumed build trusts."""
    result = write_shard(spec)
    note = _note_path(spec)
    # Put in place in one step: a cluster may run a shard twice, and neither may see half of the other's note.
    partial = note.with_name(f"{note.name}.{os.getpid()}")
    partial.write_text(json.dumps(asdict(result)))
    partial.replace(note)
    return result


def _note_path(spec: ShardSpec) -> Path:
    return spec.path.with_name(spec.path.name + ".done.json")


def _read_note(spec: ShardSpec) -> ShardResult:
    result = ShardResult.from_json(_note_path(spec).read_text())
    if result is None:
        raise UsageError(f"{_note_path(spec)}: damaged: build the records again")
    return result


def _run_here(specs: list[ShardSpec], progress: Progress, workers: int) -> Iterator[ShardResult]:
    for spec in specs:
        yield _write_and_note(spec)
        progress.advance(len(spec.tracks))


def _run_pool(specs: list[ShardSpec], progress: Progress, workers: int) -> Iterator[ShardResult]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(specs)), mp_context=context, initializer=_start_worker)
    with _interrupts_ignored():  # the workers inherit it, from before their first instruction
        futures: dict[Future[ShardResult], ShardSpec] = {pool.submit(_write_and_note, spec): spec for spec in specs}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                raise UsageError(
                    "a worker process was killed from outside, for want of memory as a rule: pass a lower --workers;"
                    " finished shards are kept"
                ) from error
            progress.advance(len(futures[future].tracks))
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
