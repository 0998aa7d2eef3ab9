"""TensorFlow Addons: its optimizers and its sparse image warp. No other module imports the package.

The package has reached its end of life and works with TensorFlow 2.15 or older, so it needs an environment of its own
(`.ci/constraints-addons.txt`). Nothing in the default path depends on it.
"""

import importlib.util
import warnings
from typing import Any

from tfmusic.errors import ConfigError

PREFIX = "addons/"
_INSTALL = "an environment of its own with Python 3.11 and pip install -c .ci/constraints-addons.txt 'tfmusic[addons]'"
_LARGE_EPSILON = 1e-6  # LAMB's paper


def check_addons(key: str, value: str, built_in: str) -> None:
    """Raises ConfigError where a value of the config needs TensorFlow Addons and it is not installed."""
    if value.startswith(PREFIX) and importlib.util.find_spec("tensorflow_addons") is None:
        raise ConfigError(f"{key}={value} needs TensorFlow Addons: {_INSTALL}. Built in: {built_in}")


def make_optimizer(
    name: str, *, learning_rate: Any, weight_decay: float, momentum: float, steps: int, vectors: list[str]
) -> Any:
    """Returns an optimizer of TensorFlow Addons by its name in a config; all have the legacy interface of Keras 2.

    `addons/lookahead_radam`: Lookahead (Zhang et al. 2019) around rectified Adam (Liu et al. 2020).
    `addons/lamb`: You et al. 2020. `addons/novograd`: Ginsburg et al. 2019.
    `addons/swa`: stochastic weight averaging (Izmailov et al. 2018) of SGD over the second half of the steps.

    Args:
        name: the name, with its prefix `addons/`.
        learning_rate: a number or a schedule.
        weight_decay: the decay a step. LAMB does not decay `vectors`, SWA's SGD decays nothing.
        momentum: the momentum of SWA's SGD.
        steps: the number of steps of the training.
        vectors: names of biases and of the weights of normalisation layers.
    """
    tfa = _addons()
    if name == "addons/lookahead_radam":
        return tfa.optimizers.Lookahead(tfa.optimizers.RectifiedAdam(learning_rate, weight_decay=weight_decay))
    if name == "addons/lamb":
        return tfa.optimizers.LAMB(
            learning_rate,
            weight_decay=weight_decay,
            epsilon=_LARGE_EPSILON,
            exclude_from_weight_decay=vectors,
            exclude_from_layer_adaptation=vectors,
        )
    if name == "addons/novograd":
        return tfa.optimizers.NovoGrad(learning_rate, weight_decay=weight_decay)
    assert name == "addons/swa"
    import keras

    sgd = keras.optimizers.legacy.SGD(learning_rate, momentum=momentum, nesterov=momentum > 0)
    return tfa.optimizers.SWA(sgd, start_averaging=steps // 2, average_period=max(steps // 100, 1))


def swa_averages(optimizer: Any, variables: list[Any]) -> list[Any]:
    """Returns the averages of SWA in the order of the variables; [] for other optimizers and before the first one."""
    if type(optimizer).__name__ != "SWA" or int(optimizer.iterations) <= int(optimizer._get_hyper("start_averaging")):
        return []
    return [optimizer.get_slot(variable, "average") for variable in variables]


def sparse_image_warp(images: Any, source: Any, target: Any) -> Any:
    """Returns float32 images [batch, height, width, 1] whose points `source` [batch, n, 2] have moved to `target`.

    A spline of order 2 interpolates between them. The corners and the middles of the edges do not move.
    """
    warped, _ = _addons().image.sparse_image_warp(images, source, target, num_boundary_points=2)
    return warped


def _addons() -> Any:
    with warnings.catch_warnings():  # about its end of life, at every import
        warnings.simplefilter("ignore")
        import tensorflow_addons

    return tensorflow_addons
