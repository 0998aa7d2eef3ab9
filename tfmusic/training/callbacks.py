"""What happens after every step, and where the numbers of every epoch go."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.console import Progress
from tfmusic.errors import RunError
from tfmusic.training.distribution import check_interrupt

N_NAMED = 8  # tracks of a batch
N_PICTURES = 4  # of a batch
EPOCHS_BETWEEN_PICTURES = 10


class StepWatch(keras.callbacks.Callback):
    """Moves the progress bar, where steps are shown, and stops at the first loss that is no number."""

    def __init__(
        self, progress: Progress, epoch: int, tracks_of: Callable[[int, int], list[str]], *, shown: bool = True
    ) -> None:
        """Takes the names of the tracks in a step from `tracks_of`, given epoch and step, counted from 0."""
        super().__init__()
        self.progress, self.epoch, self.tracks_of, self.shown = progress, epoch, tracks_of, shown

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the loss so far of the epoch; one NaN makes it NaN."""
        check_interrupt()
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} at step {batch + 1} of epoch {self.epoch + 1}: lower"
                " training.learning_rate, or set training.precision=float32"
                + _listed(self.tracks_of(self.epoch, batch))
            )
        if self.shown:
            self.progress.advance(note=f"epoch {self.epoch + 1} loss {loss:.4f}")


def _listed(tracks: Sequence[str]) -> str:
    more = f" and {len(tracks) - N_NAMED} more" if len(tracks) > N_NAMED else ""
    return f"; the batch held tracks {', '.join(tracks[:N_NAMED])}{more}" if tracks else ""


class InputWatch:
    """Measures how long training waits for its batches, and keeps a look at the first of them.

    A step's wait is that between its asking for a batch and the handing over, noted by a stage before and one after
    all others. What Keras does around it, and the making of the graphs of the first step, is none.
    """

    def __init__(self) -> None:
        self.codes: np.ndarray | None = None
        self._wait_s = 0.0
        self._begin_s = time.perf_counter()

    def watched(self, ds: Any) -> Any:
        """Returns the same batches with their hand-over noted; on backends that fetch ahead of a step as they were."""
        if keras.backend.backend() != "tensorflow":
            return ds
        import tensorflow as tf

        def note(asked_s: Any, batch: Any) -> Any:
            codes = batch[0][0] if isinstance(batch[0], tuple) else batch[0]
            with tf.control_dependencies(tf.nest.flatten(batch)):
                wait_s = tf.timestamp() - asked_s
            with tf.control_dependencies([tf.numpy_function(self._handed_over, [wait_s, codes[:N_PICTURES]], [])]):
                return tf.nest.map_structure(tf.identity, batch)

        asked = tf.data.Dataset.range(ds.cardinality()).map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.autotune.enabled = False  # it would fetch ahead of the watch
        return tf.data.Dataset.zip((asked, ds)).map(note).with_options(options)  # zip asks its parts in their order

    @property
    def wait_share(self) -> float | None:
        """Share of the time since the watch was made that was spent waiting for batches; None where none was seen."""
        return None if self.codes is None else self._wait_s / (time.perf_counter() - self._begin_s)

    def _handed_over(self, wait_s: np.float64, codes: np.ndarray) -> None:
        if self.codes is None:
            self.codes = np.array(codes)
        self._wait_s += max(float(wait_s), 0.0)  # the system's clock may be set back


class MetricsLog:
    """Appends the numbers of every epoch to metrics.jsonl and to TensorBoard's event files."""

    def __init__(self, path: Path, tensorboard: Path | None, *, keep_epochs: int) -> None:
        """Opens both; lines after `keep_epochs` belong to an epoch that was interrupted and are dropped."""
        self.path, self.writer = path, None
        lines = path.read_text(encoding="utf-8").splitlines()[:keep_epochs] if path.is_file() else []
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
        if self.writer is not None:
            import tensorflow as tf

            with self.writer.as_default(step=numbers["epoch"]):
                for name, value in numbers.items():
                    if isinstance(value, float):
                        tf.summary.scalar(name, value)
            self.writer.flush()
