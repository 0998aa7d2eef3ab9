"""Optimizer, learning-rate schedule and loss of a config."""

import math
from typing import Any

import keras

from tfmusic.config import TrainingSection
from tfmusic.errors import ConfigError

_OPTIMIZERS = {"adamw": keras.optimizers.AdamW, "adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}

_LOSSES = {
    "cross_entropy": ("single", keras.losses.CategoricalCrossentropy),
    "binary_cross_entropy": ("multi", keras.losses.BinaryCrossentropy),
    "focal": ("multi", keras.losses.BinaryFocalCrossentropy),
}


def make_optimizer(options: TrainingSection, model: keras.Model, steps_per_epoch: int) -> Any:
    """Returns the optimizer, built for the model's weights; weight decay spares biases and normalisation."""
    arguments: dict[str, Any] = {"learning_rate": make_schedule(options, steps_per_epoch)}
    if options.weight_decay:
        arguments["weight_decay"] = options.weight_decay
    if options.optimizer == "sgd":
        arguments |= {"momentum": options.momentum, "nesterov": options.momentum > 0}
    if options.ema_momentum:
        arguments |= {"use_ema": True, "ema_momentum": options.ema_momentum}
    optimizer = _OPTIMIZERS[options.optimizer](**arguments)
    if options.weight_decay:
        vectors = [weight for weight in model.trainable_variables if len(weight.shape) <= 1]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    # Keras would put the average into the weights at the end of every fit(), and an epoch is a fit() here: training
    # has to go on from the weights themselves. `state.averaged_weights` lends the average to validation.
    optimizer.finalize_variable_values = lambda variables: None
    optimizer.build(model.trainable_variables)
    if options.ema_momentum:
        # Keras lets averages begin at 0, and where float16's loss scaling skips the first step they stay too small.
        for weight, average in zip(model.trainable_variables, optimizer._model_variables_moving_average, strict=True):
            average.assign(weight)
    return optimizer


def make_schedule(options: TrainingSection, steps_per_epoch: int) -> Any:
    """Returns the learning rate over steps: a linear warm-up, then half a cosine down to 0, or a constant."""
    if options.schedule == "constant":
        return options.learning_rate
    total = options.epochs * steps_per_epoch
    warmup = min(math.ceil(options.warmup_epochs * steps_per_epoch), total - 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(options.learning_rate, total)
    return keras.optimizers.schedules.CosineDecay(
        0.0, total - warmup, warmup_target=options.learning_rate, warmup_steps=warmup
    )


def make_loss(options: TrainingSection, kind: str) -> Any:
    """Returns the loss on logits.

    Raises:
        ConfigError: the loss is not for this kind of labels.
    """
    wanted, loss = _LOSSES[options.loss]
    if wanted != kind:
        fitting = " or ".join(name for name, (for_kind, _) in _LOSSES.items() if for_kind == kind)
        what = "one label" if kind == "single" else "several tags"
        raise ConfigError(f"training.loss must be {fitting} for {what} a track. Received: {options.loss}")
    return loss(from_logits=True, label_smoothing=options.label_smoothing)
