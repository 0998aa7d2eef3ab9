"""What a training reads of its optimizer: one of Keras 3, of Keras 2.15, or of TensorFlow Addons (Keras 2's legacy)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmusic.addons import swa_averages


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
        return list(optimizer.variables)
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
