"""What answers, from its folder: the model of a run, or an exported model of segments, and all that belongs to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfmusic.checksums import check_files
from tfmusic.configfile import load_config
from tfmusic.contract import Contract
from tfmusic.errors import RunError, UsageError
from tfmusic.models import for_prediction
from tfmusic.models.saved import load_saved
from tfmusic.reports.card import model_card
from tfmusic.rundir import RunDir, is_run, to_finish
from tfmusic.scoring.calibrate import Calibration
from tfmusic.serving.exported import is_export, is_of_segments, read_answer
from tfmusic.serving.segment_model import SegmentModel, check_fits


@dataclass(frozen=True)
class LoadedRun:
    """The best model of a run, or an exported model of segments, with all that turns its logits into answers."""

    model: Any  # with predict_on_batch: codes, or [codes, metadata], to logits
    contract: Contract
    calibration: Calibration
    aggregator: str
    top_k: int


def load_run(run: RunDir, task: str | None = None) -> LoadedRun:
    """Returns the best model of a run folder; of a model for several tasks, what answers one of them.

    Raises:
        UsageError: the model answers several tasks and `task` is none of them, or another than the only one.
        RunError: a file is missing or damaged, the contract is not that of the model, or the model would run code of
            its own.
    """
    run.check()
    contract, path = Contract.load(run.contract), run.checkpoint("best")
    task = choose_task(contract, task)
    if not path.is_file():
        raise RunError(f"{path}: no such file: the run has not finished an epoch")
    if not run.calibration.is_file():
        raise RunError(f"{run.path}: training has not ended. Finish it with {to_finish(run)}")
    model = load_saved(path)
    if contract.heads:
        model = keras.Model(model.input, _head(model, task, path))
    for_prediction(model)
    evaluation = load_config(run.config).evaluation
    calibration = Calibration.load(run.calibration, task if contract.heads else None)
    part = contract.parts()[task].contract
    check_fits(path, part, *([_spec(one) for one in some] for some in (model.inputs, model.outputs)))
    return LoadedRun(model, part, calibration, evaluation.aggregator, evaluation.top_k)


def _head(model: keras.Model, task: str, path: Path) -> Any:
    try:
        return model.get_layer(f"logits_{task}").output
    except ValueError as error:
        raise RunError(
            f"{path}: must have a head for {task}, as the contract beside it says; bring back files that belong"
            " together"
        ) from error


def _spec(tensor: Any) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape[1:]), getattr(tensor.dtype, "name", tensor.dtype)  # Keras 2 has TensorFlow's types


def card_of(run: RunDir, loaded: LoadedRun) -> dict[str, Any]:
    """Returns the model card of a run that has been loaded."""
    return model_card(
        run,
        loaded.contract,
        aggregator=loaded.aggregator,
        top_k=loaded.top_k,
        limits=loaded.calibration.limits,
        n_parameters=loaded.model.count_params(),
    )


def choose_task(contract: Contract, task: str | None) -> str:
    """Returns the task that a model is asked for; raises UsageError where that is not clear."""
    tasks = list(contract.parts())
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        raise UsageError(
            f"--task must be one of {', '.join(tasks)}, which the model answers. Received: {task or 'none'}"
        )
    return task


def load_answering(path: Path, contract: Contract, task: str | None = None) -> LoadedRun | None:
    """Returns what a run folder or an export of segments answers with; None for a SavedModel, which answers itself.

    `contract` is that of the folder, as `load_contract` returns it.

    Raises:
        UsageError: as `load_run`; or the package that runs the export is not installed.
        RunError: the folder is damaged, or does not say how windows become an answer.
    """
    if is_run(path):
        return load_run(RunDir(path), task)
    choose_task(contract, task)
    if not is_of_segments(path):
        return None
    aggregator, top_k = read_answer(path)
    calibration = Calibration.load(path / "calibration.json")
    return LoadedRun(SegmentModel(path, contract), contract, calibration, aggregator, top_k)


def load_contract(model_path: Path) -> Contract:
    """Returns the contract of a run or an export; raises RunError where the folder is neither, or damaged."""
    if is_export(model_path) or is_run(model_path):
        check_files(model_path, only=["contract.json"] if is_run(model_path) else None)
        return Contract.load(model_path / "contract.json")
    raise RunError(f"{model_path}: must be a run folder with a trained model, or what tfmusic export wrote")
