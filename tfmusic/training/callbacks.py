"""What happens after every step, and where the numbers of every epoch go."""

import json
import math
from pathlib import Path
from typing import Any

import keras

from tfmusic.console import Progress
from tfmusic.errors import RunError


class StepWatch(keras.callbacks.Callback):
    """Moves the progress bar, where steps are shown, and stops at the first loss that is no number."""

    def __init__(self, progress: Progress, epoch: int, *, shown: bool = True) -> None:
        super().__init__()
        self.progress, self.epoch, self.shown = progress, epoch, shown

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the loss so far of the epoch; one NaN makes it NaN."""
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} at step {batch + 1} of epoch {self.epoch + 1}: lower"
                " training.learning_rate, or set training.precision=float32"
            )
        if self.shown:
            self.progress.advance(note=f"epoch {self.epoch + 1} loss {loss:.4f}")


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
