"""Records, runs and exports looked at as a whole: what is missing, damaged, or does not go together."""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tfmusic.config.loading import load_config
from tfmusic.core.contract import Contract
from tfmusic.core.files import CHECKSUMS_NAME, check_files
from tfmusic.core.rundir import FOR_TRAINING, RunDir, is_run, to_finish
from tfmusic.errors import RunError, TfmusicError, UsageError
from tfmusic.export.card import CARD_JSON
from tfmusic.inference.model_folder import FILES, SAVED_MODEL, is_export
from tfmusic.records.build.build import RECORDS_VERSION
from tfmusic.records.manifest import MANIFEST_NAME, Manifest
from tfmusic.records.verify import count_files, faults_of
from tfmusic.scoring.track_scorer import TrackScorer


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        kind: `records`, `run` or `export`.
        n_files: files whose checksums were compared.
        faults: a line for every fault; none where all is whole.
        notes: what could not be checked.
    """

    kind: str
    n_files: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def verify(folder: Path) -> Verified:
    """Returns the faults of a folder; of a run also those of the runs and the export in it.

    Raises:
        UsageError: the folder is of no such kind.
        RecordsError: it holds records whose manifest cannot be read, so that nothing is known of the rest.
    """
    if is_export(folder):
        return _of_models([folder], "export")
    if (folder / "config.yaml").is_file() or is_run(folder):
        inner = {path.parent for name in (CHECKSUMS_NAME, SAVED_MODEL, *FILES.values()) for path in folder.rglob(name)}
        inner |= {path.parent.parent for path in folder.rglob("checkpoints/best.keras")}
        return _of_models(sorted({folder, *inner}), "run")
    if (folder / MANIFEST_NAME).is_file() or any(folder.glob(f"*/{MANIFEST_NAME}")):
        manifest = Manifest.read(folder)
        return Verified("records", count_files(manifest), tuple(faults_of(manifest, RECORDS_VERSION)), ())
    raise UsageError(f"{folder}: must be a folder of records, a run or an export. Received: none of these")


def _of_models(folders: list[Path], kind: str) -> Verified:
    n_files, faults, notes = 0, list[str](), list[str]()
    for folder in folders:
        try:
            n_files += len(check_files(folder, may_lack=FOR_TRAINING))
        except RunError as error:
            faults.append(str(error))
        if not (folder / CHECKSUMS_NAME).is_file():
            notes.append(f"{folder}: has no {CHECKSUMS_NAME}, as of an older tfmusic: models in it were not looked at")
        faults += _faults_of_export(folder) if is_export(folder) else _faults_of_run(RunDir(folder))
    return Verified(kind, n_files, tuple(dict.fromkeys(faults)), tuple(notes))


def _faults_of_run(run: RunDir) -> Iterator[str]:
    """Yields what the files of a run say of themselves, which is all there is of a run without checksums."""
    if not run.calibration.is_file():
        yield f"{run.path}: training has not ended. Finish it with {to_finish(run)}"
    yield from _failures(
        lambda: load_config(run.config),
        lambda: _tasks(run.contract, run.calibration),
        lambda: run.read_json(run.records),
        lambda: _history(run.metrics),
        lambda: _archive(run.checkpoint("best"), is_needed=True),
        lambda: _archive(run.checkpoint("last")),
        lambda: _archive(run.state),
    )


def _faults_of_export(folder: Path) -> Iterator[str]:
    contract = folder / "contract.json"
    yield from _failures(
        lambda: _tasks(contract, folder / "calibration.json"),
        lambda: _card(folder),
        lambda: _same_labels(Contract.load(contract).labels, folder / "labels.txt"),
        lambda: _present(folder / "variables" / "variables.index") if (folder / SAVED_MODEL).is_file() else None,
    )


def _card(folder: Path) -> None:
    """Reads the card, where there is one."""
    if (folder / CARD_JSON).is_file():
        RunDir(folder).read_json(folder / CARD_JSON)


def _failures(*checks: Callable[[], object]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except (TfmusicError, OSError) as error:
            yield str(error)


def _tasks(contract: Path, calibration: Path) -> None:
    for part in Contract.load(contract).parts().values():
        if calibration.is_file():
            TrackScorer.load(calibration, part.contract)


def _history(path: Path) -> None:
    """Reads the numbers of every epoch, where there are some: an ensemble has none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    try:
        epochs = [json.loads(line)["epoch"] for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: must have a JSON object an epoch. Received: {error!r}") from error
    if epochs != list(range(1, len(epochs) + 1)):
        raise RunError(f"{path}: must have every epoch once, in order. Received: {epochs}")


def _archive(path: Path, *, is_needed: bool = False) -> None:
    """Compares the checksums inside a .keras or .npz file."""
    if not path.is_file() and not is_needed:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise RunError(f"{path}: must be a whole archive: {error}") from error
    if damaged is not None:
        raise RunError(f"{path}: damaged: {damaged} in it does not match its checksum")


def _same_labels(labels: tuple[str, ...], path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text.splitlines() != list(labels):
        raise RunError(f"{path}: must list the labels of the contract, one a line")


def _present(path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path}: no such file; export the run again")
