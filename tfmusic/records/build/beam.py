"""Shards on Apache Beam: the same pure function over the same plan, on any of its runners.

Every worker must see the tracks' files and the records folder under the same paths: a shared file system, as runners on
one machine, and clusters with one mounted, have.
"""

import importlib.util
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfmusic.errors import DataError, TfmusicError, UsageError

if TYPE_CHECKING:
    from tfmusic.records.build.shard import ShardResult, ShardSpec

RUNNERS = ("DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")
_LOCAL = "--direct_running_mode=multi_processing"


@dataclass(frozen=True)
class BeamRun:
    """Where Beam runs.

    Attributes:
        runner: one of `RUNNERS`.
        options: options of the runner, as on its command line.
    """

    runner: str
    options: str = ""

    def check(self) -> None:
        """Raises UsageError where Beam is not installed, or its options are no command line."""
        if importlib.util.find_spec("apache_beam") is None:
            raise UsageError(f"--runner {self.runner} needs an extra: pip install 'tfmusic[beam]'")
        try:
            shlex.split(self.options)
        except ValueError as error:
            raise UsageError(
                f"--beam-options must be as on a command line: {error}. Received: {self.options}"
            ) from error

    def arguments(self, workers: int) -> list[str]:
        """Returns Beam's pipeline options; `workers` are the processes of the DirectRunner."""
        local = [f"--direct_num_workers={workers}", *([_LOCAL] if workers > 1 else [])]
        own = local if self.runner == "DirectRunner" else []
        return [f"--runner={self.runner}", *own, *shlex.split(self.options)]


def run_beam(
    specs: "Sequence[ShardSpec]",
    write_fn: "Callable[[ShardSpec], ShardResult]",
    read_fn: "Callable[[ShardSpec], ShardResult]",
    run: BeamRun,
    workers: int,
) -> "Iterator[ShardResult]":
    """Yields the results of all shards in the order of the specs, once all are written.

    Args:
        specs: the shards to write.
        write_fn: writes a shard, and its note beside it.
        read_fn: reads the note.
        run: the runner.
        workers: processes of the DirectRunner.

    Raises:
        DataError: a track cannot be stored; Beam has tried more than once, where its runner does so.
        UsageError: Beam itself failed.
    """
    if not specs:
        return
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        with beam.Pipeline(options=PipelineOptions(run.arguments(workers))) as pipeline:
            # Reshuffle: without it a runner may fuse the shards into one bundle, for one worker.
            _ = pipeline | beam.Create(list(specs)) | beam.Reshuffle() | beam.Map(_Write(write_fn))
    except Exception as error:  # every runner wraps the workers' errors in another way
        raise _own_error(error, run) from error
    for spec in specs:
        yield read_fn(spec)


@dataclass(frozen=True)
class _Write:
    """Writes a shard; what goes wrong with a track is marked, so that it is found in any runner's message."""

    write_fn: "Callable[[ShardSpec], ShardResult]"

    def __call__(self, spec: "ShardSpec") -> str:
        try:
            return self.write_fn(spec).shard.file
        except TfmusicError as error:
            raise RuntimeError(_MARK.join(("", type(error).__name__, str(error), ""))) from error


_MARK = "\N{SYMBOL FOR RECORD SEPARATOR}"


def _own_error(error: Exception, run: BeamRun) -> TfmusicError:
    parts = str(error).split(_MARK)
    if len(parts) > 3:  # a store that cannot be reached is no fault of the data: what is finished is kept
        return DataError(parts[2]) if parts[1] == DataError.__name__ else UsageError(parts[2])
    last = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    return UsageError(f"{run.runner}: the pipeline failed: {last}; finished shards are kept")
