"""Tensor operations that Keras 3 (every backend) and Keras 2.15 (the addons stack) call by different names.

The only place where model code looks at the version of Keras.
"""

from typing import Any

import keras

IS_KERAS_3 = hasattr(keras, "ops")
_ops: Any = keras.ops if IS_KERAS_3 else keras.backend

cast = _ops.cast
log = _ops.log
maximum = _ops.maximum
mean = _ops.mean
power = _ops.power if IS_KERAS_3 else _ops.pow
sigmoid = _ops.sigmoid
sum = _ops.sum


def log_sigmoid(x: Any) -> Any:
    """Returns log(sigmoid(x)), finite for every finite x."""
    return -(_ops.softplus(-x))
