"""Optimizers, learning-rate schedules and losses.

An optimizer is one of Keras 3, of Keras 2.15, or of TensorFlow Addons, which has Keras 2's legacy interface.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmusic.config.sections import TrainingSection
from tfmusic.core import addons
from tfmusic.core.addons import swa_averages
from tfmusic.errors import ConfigError
from tfmusic.models import ops


def is_legacy(optimizer: Any) -> bool:
    """Returns whether an optimizer is of the interface before Keras 2.11, as all of TensorFlow Addons are."""
    return hasattr(optimizer, "_create_all_weights")


def build(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes all variables of an optimizer, so that a saved state can be put into them."""
    if is_legacy(optimizer):
        optimizer.iterations  # noqa: B018 - made when first read
        optimizer._create_all_weights(variables)
        if hasattr(optimizer, "_optimizer"):  # a wrapper counts for the one inside, but only from its first step on
            optimizer._optimizer._iterations = optimizer.iterations
    elif hasattr(optimizer, "build"):
        optimizer.build(variables)


def state_variables(optimizer: Any) -> list[Any]:
    """Returns all variables of an optimizer, those of one that it wraps included."""
    if not is_legacy(optimizer):
        # Keras 2.15 does not list the scale of the loss under mixed_float16.
        loss_scale = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
        return [*optimizer.variables, *loss_scale.values()]
    inside = getattr(optimizer, "_optimizer", None)
    every = [*optimizer.variables(), *(inside.variables() if inside is not None else ())]
    return list({id(variable): variable for variable in every}.values())


def current_rate(optimizer: Any) -> float:
    """Returns the learning rate of the next step."""
    if is_legacy(optimizer):
        inside = getattr(optimizer, "_optimizer", optimizer)
        return float(np.asarray(inside._decayed_lr("float32")))
    return float(np.asarray(optimizer.learning_rate))


def averages(optimizer: Any, variables: Sequence[Any]) -> list[Any]:
    """Returns the moving averages of variables in their order; none where the optimizer keeps none."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of mixed_float16's loss scaling
    if is_legacy(optimizer):
        return swa_averages(optimizer, list(variables))
    return list(optimizer._model_variables_moving_average) if optimizer.use_ema else []


class AsymmetricLoss(keras.losses.Loss):
    """Binary cross-entropy that lets easy negatives go (Ridnik et al. 2021, arXiv 2009.14119).

    Of a negative with probability p the loss is weighted by (p - margin)^focus, and is 0 below the margin; positives
    keep theirs.
    """

    def __init__(self, *, focus: float = 4.0, margin: float = 0.05, label_smoothing: float = 0.0) -> None:
        super().__init__(name="asymmetric")
        self.focus, self.margin, self.label_smoothing = focus, margin, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every example, [batch]."""
        y_true = _smooth(ops.cast(y_true, "float32"), self.label_smoothing)
        z = ops.cast(y_pred, "float32")
        shifted = ops.maximum(ops.sigmoid(z) - self.margin, 0.0)
        negative = ops.power(shifted, self.focus) * ops.log(ops.maximum(1.0 - shifted, 1e-7))
        return -ops.mean(y_true * ops.log_sigmoid(z) + (1.0 - y_true) * negative, axis=-1)


class SoftF1Loss(keras.losses.Loss):
    """1 - micro-F1 of a batch with scores in place of decisions, and half of binary cross-entropy to start it off.

    Alone it stays where all scores are near 0, since there its gradient is.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__(name="soft_f1")
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every example, [batch]; the part of F1 is the same for all."""
        y_true = _smooth(ops.cast(y_true, "float32"), self.label_smoothing)
        z = ops.cast(y_pred, "float32")
        scores = ops.sigmoid(z)
        f1 = 2.0 * ops.sum(y_true * scores) / (ops.sum(y_true) + ops.sum(scores) + 1e-7)
        entropy = -ops.mean(y_true * ops.log_sigmoid(z) + (1.0 - y_true) * ops.log_sigmoid(-z), axis=-1)
        return 1.0 - f1 + 0.5 * entropy


def _smooth(targets: Any, share: float) -> Any:
    return targets * (1.0 - share) + 0.5 * share if share else targets


# `lbfgs` solves a linear head in `training.linear`; Keras needs some optimizer to compile with.
_OPTIMIZERS = {
    "lbfgs": keras.optimizers.SGD,
    "adamw": keras.optimizers.AdamW,
    "adam": keras.optimizers.Adam,
    "sgd": keras.optimizers.SGD,
}

_LOSSES: dict[str, tuple[str, Any]] = {
    "cross_entropy": ("single", keras.losses.CategoricalCrossentropy),
    "binary_cross_entropy": ("multi", keras.losses.BinaryCrossentropy),
    "focal": ("multi", keras.losses.BinaryFocalCrossentropy),
    "asymmetric": ("multi", AsymmetricLoss),
    "soft_f1": ("multi", SoftF1Loss),
}

_DEFAULT_LOSSES = {"single": "cross_entropy", "multi": "binary_cross_entropy"}


def make_optimizer(
    options: TrainingSection, model: keras.Model, steps: int, warmup_steps: int, slow: Sequence[Any] = ()
) -> Any:
    """Returns the optimizer, built for the model's trainable weights; weight decay spares biases and normalisation.

    Args:
        options: the training section of the config.
        model: the model to train.
        steps: how many there will be.
        warmup_steps: the first of them, over which the learning rate rises.
        slow: variables that learn, and decay, at `backbone_rate_factor` times the learning rate.
    """
    if options.optimizer.startswith(addons.PREFIX):
        return _from_addons(options, model, steps, warmup_steps)
    arguments: dict[str, Any] = {"learning_rate": make_schedule(options, steps, warmup_steps)}
    # Always given: what AdamW takes of its own accord is not 0.
    arguments["weight_decay"] = options.weight_decay if options.weight_decay or options.optimizer == "adamw" else None
    if options.optimizer == "sgd":
        arguments |= {"momentum": options.momentum, "nesterov": options.momentum > 0}
    if options.ema_momentum:
        arguments |= {"use_ema": True, "ema_momentum": options.ema_momentum}
    optimizer = _OPTIMIZERS[options.optimizer](**arguments)
    if options.weight_decay:
        vectors = [weight for weight in model.trainable_variables if len(weight.shape) <= 1]
        optimizer.exclude_from_weight_decay(var_list=[*vectors, *slow])
    build(optimizer, model.trainable_variables)
    if slow:
        (_slow_down if ops.IS_KERAS_3 else _slow_down_keras_2)(optimizer, slow, options)
    if options.ema_momentum:
        # Keras lets averages begin at 0, and where float16's loss scaling skips the first step they stay too small.
        weights = model.trainable_variables
        for weight, average in zip(weights, averages(optimizer, weights), strict=True):
            average.assign(np.array(weight))  # a copy: JAX must not be given one buffer twice
    return optimizer


def _slow_down(optimizer: Any, variables: Sequence[Any], options: TrainingSection) -> None:
    """Lets some variables of a built optimizer learn and decay at `backbone_rate_factor` times the learning rate."""
    rank = {optimizer._get_variable_index(variable): len(variable.shape) for variable in variables}
    step, factor = optimizer.update_step, options.backbone_rate_factor

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = optimizer._get_variable_index(variable)
        if index not in rank:
            step(gradient, variable, learning_rate)
            return
        if options.weight_decay and rank[index] > 1:  # Keras decays at the full rate, so these are left to us
            optimizer.assign_sub(variable, variable * (options.weight_decay * factor * learning_rate))
        step(gradient, variable, factor * learning_rate)

    optimizer.update_step = update_step


def _slow_down_keras_2(optimizer: Any, variables: Sequence[Any], options: TrainingSection) -> None:
    """Does what `_slow_down` does where a step takes no learning rate: it is made in full, and a part of it kept."""
    rank = {optimizer._var_key(variable): len(variable.shape) for variable in variables}
    step, factor = optimizer.update_step, options.backbone_rate_factor

    def update_step(gradient: Any, variable: Any) -> None:
        key = optimizer._var_key(variable)
        before = variable + 0.0 if key in rank else None  # a copy
        step(gradient, variable)
        if before is not None:
            decay = options.weight_decay if rank[key] > 1 else 0.0
            decayed = before * (decay * factor * ops.cast(optimizer.learning_rate, variable.dtype))
            variable.assign(before + factor * (variable - before) - decayed)

    optimizer.update_step = update_step


def _from_addons(options: TrainingSection, model: keras.Model, steps: int, warmup_steps: int) -> Any:
    vectors = [weight.name for weight in model.trainable_variables if len(weight.shape) <= 1]
    optimizer = addons.make_optimizer(
        options.optimizer,
        learning_rate=make_schedule(options, steps, warmup_steps),
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        steps=steps,
        vectors=vectors,
    )
    build(optimizer, model.trainable_variables)
    return optimizer


def make_schedule(options: TrainingSection, steps: int, warmup_steps: int) -> Any:
    """Returns the learning rate over steps: a linear warm-up, then half a cosine down to 0, or a constant to begin."""
    if options.schedule != "cosine":
        return options.learning_rate
    warmup = min(warmup_steps, steps - 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=options.learning_rate, warmup_steps=warmup
    )


def make_loss(options: TrainingSection, kind: str) -> Any:
    """Returns the loss on logits.

    Raises:
        ConfigError: the loss is not for this kind of labels.
    """
    name = _DEFAULT_LOSSES[kind] if options.loss == "auto" else options.loss
    wanted, loss = _LOSSES[name]
    if wanted != kind:
        fitting = " or ".join(["auto", *(name for name, (for_kind, _) in _LOSSES.items() if for_kind == kind)])
        what = "one label" if kind == "single" else "several tags"
        raise ConfigError(f"training.loss must be {fitting} for {what} a track. Received: {options.loss}")
    takes_scores = {} if name in ("asymmetric", "soft_f1") else {"from_logits": True}
    return loss(**takes_scores, label_smoothing=options.label_smoothing)
