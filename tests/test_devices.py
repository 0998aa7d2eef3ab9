"""Several devices of one machine, here two logical devices of a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tests.conftest import fit_small
from tfmusic.core.rundir import RunDir
from tfmusic.errors import ConfigError
from tfmusic.training import devices
from tfmusic.training.devices import Devices
from tfmusic.training.processes import Processes

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="is about TensorFlow's workers")
def test_workers_with_several_devices_are_refused(monkeypatch):
    """Two workers of two GPUs each would train on the same batches twice."""
    monkeypatch.setattr(devices, "multi_worker_strategy", lambda: SimpleNamespace(num_replicas_in_sync=4))
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES.*4 devices of 2 workers"):
        devices._of_all(Processes(0, 2, "localhost:1"))


_TWO_DEVICES = """
import sys
from pathlib import Path
import keras
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.conftest import fit_small
from tfmusic.training.devices import Devices

assert len(Devices.find("all").names) == 2
records, out, *switches = sys.argv[1:]
for devices in (1, "all"):
    run = Path(out) / str(devices)
    args = ("q2", Path(records), run, *switches, f"training.devices={devices}")
    if devices == "all":
        assert fit_small(*args, "training.epochs=1") == 0
    assert fit_small(*args, "training.epochs=2", flags=("--resume",) if devices == "all" else ()) == 0
assert fit_small("q2", Path(records), Path(out) / "odd", "training.devices=2", "training.batch_size=7") == 2
"""

# Nothing random inside the model: what is dropped where depends on the device.
_SWITCHES = (
    "model.name=cnn1d",  # soon compiled
    "training.schedule=constant",  # else the rates of a resumed run would differ
    "model.dropout=0.0", "training.ema_momentum=0.9", "augment.mixup_alpha=0.2", "training.learning_rate=1e-3",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.torture)])
def test_two_devices_give_the_curve_of_one(records, tmp_path, backend):
    """Same batches, same losses to 1e-3, same validation tracks, also after a resume; the checkpoint is a plain one."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-c", _TWO_DEVICES, str(records), str(tmp_path), *_SWITCHES]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    one, two = (
        [json.loads(line) for line in RunDir(tmp_path / name).metrics.read_text().splitlines()] for name in ("1", "all")
    )
    assert [line["epoch"] for line in two] == [1, 2]
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-3)
    model = keras.saving.load_model(RunDir(tmp_path / "all").checkpoint("last"), compile=False)
    plain = keras.saving.load_model(RunDir(tmp_path / "1").checkpoint("last"), compile=False)
    assert not any(getattr(layer, "synchronized", False) for layer in model.layers)
    codes = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:]), np.uint8)
    np.testing.assert_allclose(model(codes), plain(codes), atol=2e-2)
    assert not (tmp_path / "odd").exists()


def test_devices_that_are_not_there(records, tmp_path, capsys):
    """More devices than the machine has are refused with their names, and so is a cached backbone on several."""
    with pytest.raises(ConfigError, match=r"at most the devices of this machine \(.*\). Received: 99"):
        Devices.find(99)
    assert fit_small("q2", records, tmp_path / "run", "training.devices=99") == 2
    assert "training.devices must be all, or at most" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not Devices.find(1).are_several


def test_batches_that_all_devices_share():
    """Training batches must be a multiple of the devices."""
    three = Devices(("a", "b", "c"), object())
    three.check_batch(6)
    with pytest.raises(ConfigError, match=r"must be a multiple of the 3 devices\. Received: 4"):
        three.check_batch(4)
