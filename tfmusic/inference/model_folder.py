"""The folder of a model, of a run or an export: which it is, what its model predicts, and for which task it is used."""

from pathlib import Path

from tfmusic.core.contract import Contract
from tfmusic.core.files import check_files
from tfmusic.core.rundir import is_run
from tfmusic.errors import RunError, UsageError
from tfmusic.inference.runtimes import RUNTIMES

SAVED_MODEL = "saved_model.pb"
MODEL_FILES = {"saved_model": SAVED_MODEL} | {form: runtime.file for form, runtime in RUNTIMES.items()}


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return any((folder / name).is_file() for name in MODEL_FILES.values())


def load_contract(folder: Path) -> Contract:
    """Returns the contract of a run or an export.

    Raises:
        RunError: the folder is neither, or it is damaged.
    """
    if not is_export(folder) and not is_run(folder):
        raise RunError(f"{folder}: must be a run folder with a trained model, or a folder that tfmusic export wrote")
    check_files(folder, only=["contract.json"] if is_run(folder) else None)
    return Contract.load(folder / "contract.json")


def choose_task(contract: Contract, task: str | None) -> str:
    """Returns the task to predict, the only one where `task` is None; raises UsageError where that is not clear."""
    tasks = list(contract.parts())
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        raise UsageError(
            f"--task must be one of {', '.join(tasks)}, the tasks of the model. Received: {task or 'none'}"
        )
    return task
