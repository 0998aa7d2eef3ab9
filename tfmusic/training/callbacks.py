"""Watching a training: every step, the waiting for input, and the numbers of every epoch."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.console import Progress
from tfmusic.core.files import append_line, write_text
from tfmusic.errors import RunError
from tfmusic.training.processes import check_interrupt

N_NAMED = 8  # tracks of a batch
N_PICTURES = 4  # of a batch
EPOCHS_BETWEEN_PICTURES = 10


class StepWatch(keras.callbacks.Callback):
    """Moves the progress bar and stops at the first loss that is no number."""

    def __init__(self, progress: Progress, tracks_of: Callable[[int, int], list[str]], *, shows_steps: bool) -> None:
        """`tracks_of` returns the names of the tracks in a step, given epoch and step, both counted from 0."""
        super().__init__()
        self.progress, self.tracks_of, self.shows_steps = progress, tracks_of, shows_steps
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, counted from 0."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the mean loss of the epoch so far, which one NaN makes NaN.

        Raises:
            RunError: the loss is no number.
            KeyboardInterrupt: this process is to end.
        """
        check_interrupt()
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} at step {batch + 1} of epoch {self.epoch + 1}: lower"
                " training.learning_rate, or set training.precision=float32"
                + _list_tracks(self.tracks_of(self.epoch, batch))
            )
        if self.shows_steps:
            self.progress.advance(note=f"epoch {self.epoch + 1} loss {loss:.4f}")


def _list_tracks(tracks: Sequence[str]) -> str:
    more = f" and {len(tracks) - N_NAMED} more" if len(tracks) > N_NAMED else ""
    return f"; the batch held tracks {', '.join(tracks[:N_NAMED])}{more}" if tracks else ""


class InputWatch:
    """Measures how long an epoch waits for its batches, and keeps a few examples of its first batch.

    The wait of a step is the time between its request for a batch and the hand-over, noted by a stage before and a
    stage after all others. What Keras does around it, and the graphs that it traces in the first step, do not count.
    """

    def __init__(self) -> None:
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Starts anew for the next epoch."""
        self.codes: np.ndarray | None = None
        self._wait_s = 0.0
        self._begin_s = time.perf_counter()

    def watched(self, ds: Any) -> Any:
        """Returns the same batches with their hand-over noted; unchanged on backends that fetch ahead of a step."""
        if keras.backend.backend() != "tensorflow":
            return ds
        import tensorflow as tf

        def note(requested_s: Any, batch: Any) -> Any:
            codes = batch[0][0] if isinstance(batch[0], tuple) else batch[0]
            with tf.control_dependencies(tf.nest.flatten(batch)):
                wait_s = tf.timestamp() - requested_s
            with tf.control_dependencies([tf.numpy_function(self._note, [wait_s, codes[:N_PICTURES]], [])]):
                return tf.nest.map_structure(tf.identity, batch)

        requests = tf.data.Dataset.range(ds.cardinality()).map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.autotune.enabled = False  # it would fetch ahead of the watch
        return tf.data.Dataset.zip((requests, ds)).map(note).with_options(options)  # zip asks its parts in their order

    @property
    def wait_share(self) -> float | None:
        """Share of the epoch's time so far that was spent waiting for batches; None where no batch was seen."""
        return None if self.codes is None else self._wait_s / (time.perf_counter() - self._begin_s)

    def _note(self, wait_s: np.float64, codes: np.ndarray) -> None:
        if self.codes is None:
            self.codes = np.array(codes)
        self._wait_s += max(float(wait_s), 0.0)  # the system's clock may be set back


class MetricsLog:
    """Appends the numbers of every epoch to metrics.jsonl and to TensorBoard's event files."""

    def __init__(self, path: Path, tensorboard: Path | None, *, keep_epochs: int) -> None:
        """Opens both; drops lines after `keep_epochs`, which belong to an interrupted epoch."""
        self.path, self.writer = path, None
        lines = path.read_text(encoding="utf-8").splitlines()[:keep_epochs] if path.is_file() else []
        write_text(path, "".join(f"{line}\n" for line in lines))
        if tensorboard is not None and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self.writer = tf.summary.create_file_writer(str(tensorboard))

    def show_inputs(self, codes: np.ndarray, epoch: int) -> None:
        """Adds codes [n, frames, n_bins] of some epochs as pictures, low bins below: what the model sees."""
        if self.writer is None or (epoch - 1) % EPOCHS_BETWEEN_PICTURES:
            return
        import tensorflow as tf

        values = codes.astype(np.float32)
        low, high = (0.0, 255.0) if codes.dtype == np.uint8 else (float(values.min()), float(values.max()))
        pictures = ((values - low) / max(high - low, 1e-6)).transpose(0, 2, 1)[:, ::-1, :, None]
        with self.writer.as_default(step=epoch):
            tf.summary.image("augmented input", pictures, max_outputs=len(pictures))

    def show_confusion(self, counts: Mapping[str, tuple[np.ndarray, tuple[str, ...]]], epoch: int) -> None:
        """Adds confusion matrices by task, with the names of their classes, as TensorBoard pictures."""
        if self.writer is None:
            return
        import tensorflow as tf

        from tfmusic.reports.pictures import confusion_picture

        with self.writer.as_default(step=epoch):
            for task, (matrix, labels) in counts.items():
                tf.summary.image(f"confusion {task}", confusion_picture(matrix, labels)[None])

    def write(self, numbers: dict[str, Any]) -> None:
        """Adds one epoch."""
        append_line(self.path, json.dumps(numbers))
        if self.writer is not None:
            import tensorflow as tf

            with self.writer.as_default(step=numbers["epoch"]):
                for name, value in numbers.items():
                    if isinstance(value, float):
                        tf.summary.scalar(name, value)
            self.writer.flush()
