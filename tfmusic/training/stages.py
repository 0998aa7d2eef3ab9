"""The stages of a training: a pretrained backbone is frozen at first, then everything learns."""

from dataclasses import dataclass

from tfmusic.config.sections import TrainingSection


@dataclass(frozen=True)
class Stage:
    """Epochs with the same layers in training and one learning-rate schedule."""

    first_epoch: int
    epochs: int
    is_frozen: bool


def stages(options: TrainingSection) -> tuple[Stage, ...]:
    """Returns the stages of a training in their order; one, unless the backbone is frozen for some of the epochs."""
    frozen = min(options.freeze_epochs, options.epochs)
    parts = (Stage(0, frozen, True), Stage(frozen, options.epochs - frozen, False))
    return tuple(stage for stage in parts if stage.epochs)


def stage_of(options: TrainingSection, epoch: int) -> Stage:
    """Returns the stage that an epoch, counted from 0, belongs to."""
    return next(stage for stage in reversed(stages(options)) if epoch >= stage.first_epoch)
