"""The folder of one training: its files, and what their JSON must hold."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tfmusic.core.files import CHECKSUMS_NAME, check_files, is_temporary, read_json_file, write_checksums
from tfmusic.core.section import first_error
from tfmusic.errors import RunError, UsageError

_SEALED = (
    "config.yaml", "environment.json", "contract.json", "calibration.json", "records.json", "pretrained.json",
    "ensemble.json", "metrics.jsonl", "checkpoints/best.keras", "checkpoints/last.keras", "backup/state.npz",
)  # fmt: skip
MAX_DEPTH = 8  # of ensembles of ensembles
FOR_TRAINING = ("checkpoints/last.keras", "backup/state.npz")  # a user may remove them to make room


class _Object(BaseModel):
    """Any JSON object."""


class _Records(BaseModel, strict=True):
    folder: str
    tracks_sha256: str
    training: list[str]
    validation: list[str]
    training_tracks: list[str]
    backbone_tracks: list[str] = []


class _Environment(BaseModel, strict=True):
    python: str
    machine: str
    backend: str
    packages: dict[str, str]


class Member(BaseModel, strict=True):
    """A run of an ensemble: its path from the ensemble's folder, its share, and the sha256 of its model."""

    run: str = Field(pattern=r"^[^\x00]+$")
    weight: float = Field(ge=0, allow_inf_nan=False)
    sha256: str | None = None


class _Ensemble(BaseModel, strict=True):
    members: list[Member]


class _Pretrained(BaseModel, strict=True):
    loaded: list[str]
    track_ids: list[str]


class _Epoch(BaseModel, strict=True):
    epoch: int
    seconds: float


class _ModelCard(BaseModel, strict=True):
    task: str
    labels: list[str]


_CONTENTS: dict[str, type[BaseModel]] = {
    "records.json": _Records,
    "environment.json": _Environment,
    "ensemble.json": _Ensemble,
    "pretrained.json": _Pretrained,
    "model_card.json": _ModelCard,
}
_EPOCHS = TypeAdapter(list[_Epoch])


@dataclass(frozen=True)
class RunDir:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def contract(self) -> Path:
        """What the model's input must be."""
        return self.path / "contract.json"

    @property
    def calibration(self) -> Path:
        """Shifts that make .5 the best threshold."""
        return self.path / "calibration.json"

    @property
    def state(self) -> Path:
        """Everything that a resumed training needs."""
        return self.path / "backup" / "state.npz"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the terminal showed."""
        return self.path / "log.txt"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def records(self) -> Path:
        """Where the records were, and which tracks were used for what."""
        return self.path / "records.json"

    @property
    def pretrained(self) -> Path:
        """Which layers began with pretrained weights, and from where."""
        return self.path / "pretrained.json"

    @property
    def ensemble(self) -> Path:
        """Which runs this one is the mean of, with their weights; absent where it was trained itself."""
        return self.path / "ensemble.json"

    def members(self, above: tuple[Path, ...] = ()) -> dict["RunDir", Member]:
        """Returns the runs that this one is the mean of; none where it was trained itself.

        Args:
            above: the ensembles that this one is a member of.

        Raises:
            RunError: the list is damaged, or names one run twice, or the run itself, directly or through its members.
        """
        if not self.ensemble.is_file():
            return {}
        here = self.path.resolve()
        listed = _Ensemble.model_validate(self.read_json(self.ensemble)).members
        members = {RunDir(self.path / member.run): member for member in listed}
        if here in above or len(above) > MAX_DEPTH or len({run.path.resolve() for run in members}) < len(listed):
            raise RunError(f"{self.ensemble}: must name other runs, each once, and not the ensemble itself")
        for run in members:
            run.members((*above, here))
        return members

    def fold(self, number: int) -> "RunDir":
        """Returns the run of one fold of a cross-validation."""
        return RunDir(self.path / f"fold{number}")

    def folds(self) -> list["RunDir"]:
        """Returns the finished runs of a cross-validation in the order of the folds; none for a plain run."""
        found: list[RunDir] = []
        while self.fold(len(found)).calibration.is_file():
            found.append(self.fold(len(found)))
        return found

    @property
    def can_resume(self) -> bool:
        """Whether an epoch has been finished here, by this run or by those that it is made of."""
        patterns = ("backup/state.npz", "*/backup/state.npz", "*/*/backup/state.npz")
        return any(True for pattern in patterns for _ in self.path.glob(pattern))

    @property
    def has_no_finished_epoch(self) -> bool:
        """Whether a training was cut off here in its first epoch, so that there is nothing to lose."""
        if self.path.is_dir() and all(map(is_temporary, self.path.iterdir())):
            return True
        if not self.config.is_file() or self.can_resume or any(self.path.rglob(self.calibration.name)):
            return False
        # The line of an epoch is written before its state.
        logs = (path for path in self.path.rglob("metrics.jsonl") if path.is_file())
        return all(len(path.read_text(encoding="utf-8").splitlines()) <= 1 for path in logs)

    @property
    def baseline(self) -> "RunDir":
        """The run of the classical baseline, which a cross-validation trains beside its model."""
        return RunDir(self.path / "baseline")

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tb"

    @property
    def evaluation(self) -> Path:
        """Reports and predictions of `evaluate`."""
        return self.path / "evaluation"

    def evaluations(self) -> list[Path]:
        """Returns the folders of all evaluations of this model, `evaluation-without-metadata` included."""
        return sorted(path for path in self.path.glob("evaluation*") if path.is_dir())

    def report_folder(self, task: str) -> Path:
        """Returns the folder of a task's report, one of its own where the model has several tasks."""
        several = "heads" in self.read_json(self.contract)
        return self.evaluation / task if several else self.evaluation

    def checkpoint(self, which: str) -> Path:
        """Returns the path of the `best` or `last` model."""
        return self.path / "checkpoints" / f"{which}.keras"

    def seal(self) -> None:
        """Writes the checksums of a run that has ended, the last of its files."""
        write_checksums(self.path, [name for name in _SEALED if (self.path / name).is_file()])

    def unseal(self) -> None:
        """Makes the run unfinished: its model is about to change."""
        (self.path / CHECKSUMS_NAME).unlink(missing_ok=True)
        self.calibration.unlink(missing_ok=True)

    def check(self, *, for_prediction: bool = True) -> list[str]:
        """Compares the files of a finished run with its checksums and returns their names.

        Args:
            for_prediction: compare only what a prediction needs, not what training further does.

        Raises:
            RunError: a file is missing or damaged.
        """
        if not self.calibration.is_file():  # not finished; callers that need a finished run raise
            return []
        only = set(_SEALED) - set(FOR_TRAINING) if for_prediction else None
        return check_files(self.path, may_lack=FOR_TRAINING, only=only)

    def history(self) -> list[dict[str, Any]]:
        """Returns the numbers of every epoch, none where a run was joined; raises RunError where they are damaged."""
        if not self.metrics.is_file():
            return []
        with reading(self.metrics):
            lines = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
            _EPOCHS.validate_python(lines)
        return lines

    @property
    def seconds(self) -> float:
        """How long the epochs took, those of all folds; 0 for a run that was joined."""
        return float(sum(line["seconds"] for one in (self.folds() or [self]) for line in one.history()))

    def read_json(self, path: Path) -> dict[str, Any]:
        """Returns the contents of one of the JSON files; raises RunError where it is missing or damaged."""
        try:
            value: dict[str, Any] = read_json_file(path)
            _CONTENTS.get(path.name, _Object).model_validate(value)
        except (OSError, ValueError) as error:
            reason = first_error(error) if isinstance(error, ValidationError) else str(error)
            raise RunError(f"{path}: must be a JSON file of a run as tfmusic writes it: {reason}") from error
        return value


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises a RunError with the name of the file where its contents are not as expected."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(f"{path}: must be as tfmusic writes it. Received: {error!r}") from error


def open_run(path: Path) -> RunDir:
    """Returns a run folder that has a trained model; raises RunError that says what is missing or damaged."""
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; it must be a run folder, which tfmusic fit writes")
    if not is_run(path):
        raise RunError(f"{path}: must be a run folder with a trained model: it lacks checkpoints/best.keras")
    RunDir(path).check()
    return RunDir(path)


def to_finish(run: RunDir) -> str:
    """Returns the command that finishes an interrupted training."""
    return f"tfmusic fit {run.config} --resume --out {run.path}"


def is_run(path: Path) -> bool:
    """Returns whether a path is the folder of a training that has a model."""
    run = RunDir(path)
    return run.contract.is_file() and run.checkpoint("best").is_file()


def new_run_dir(root: Path, task: str, name: str) -> RunDir:
    """Returns the folder for the next run of a task, `ROOT/q2/resnet18-3` after two of that model."""
    numbers = [
        int(path.name.rsplit("-", 1)[1])
        for path in (root / task).glob(f"{name}-*")
        if path.name.rsplit("-", 1)[1].isdecimal()
    ]
    return RunDir(root / task / f"{name}-{max(numbers, default=0) + 1}")


def unfinished_run_dir(root: Path, task: str) -> RunDir:
    """Returns the unfinished run of a task that was begun or resumed last.

    Raises:
        UsageError: there is none. A finished run is trained further only when it is named.
    """
    runs = [RunDir(path) for path in (root / task).glob("*") if RunDir(path).config.is_file()]
    unfinished = [run for run in runs if not run.calibration.is_file()]
    if not unfinished:
        raise UsageError(
            f"{root / task}: must hold a run that was interrupted after an epoch. Received: {len(runs)} that have"
            " ended. Leave out --resume to begin anew, or name a finished run with --out to train it further"
        )
    return max(unfinished, key=lambda run: run.config.stat().st_mtime_ns)
