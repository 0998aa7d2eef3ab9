"""`verify`: whether a folder of records, a run or an export is complete and undamaged, and its files fit each other.

- Records: sha256 of every file with the manifest, the numbers of tracks and segments with those in the manifest, and
  the files for TFDS with what the manifest implies.
- A run: sha256 of every file with checksums.json, also of the folds, members and exports inside; whether config,
  contract, calibration and epochs can be read; the checksums inside .keras and .npz files, and that Keras will make
  nothing but layers of tfmusic of a .keras file.
- An export: sha256 of every file with checksums.json; contract, calibration, card and labels with each other;
  the graph with what tfmusic exports.
"""

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tfmusic.config.loading import load_config
from tfmusic.core.contract import Contract
from tfmusic.core.files import CHECKSUMS_NAME, check_files, foreign_entries
from tfmusic.core.keras_file import check_keras_file
from tfmusic.core.rundir import FOR_TRAINING, RunDir, is_run, to_finish
from tfmusic.errors import RecordsError, RunError, TfmusicError, UsageError
from tfmusic.export.card import CARD_JSON
from tfmusic.inference.model_folder import MODEL_FILES, SAVED_MODEL, check_model, is_export
from tfmusic.records import descriptions
from tfmusic.records.build.build import RECORDS_VERSION
from tfmusic.records.manifest import MANIFEST_NAME, TOKENS_NAME, TRACKS_NAME, Manifest, Shard
from tfmusic.records.reader import read_shard
from tfmusic.scoring.track_scorer import TrackScorer

MAX_NAMES = 8  # of files in a note
_Check = Callable[[], object]  # raises TfmusicError or OSError


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        kind: `records`, `run` or `export`.
        n_files: files whose checksums were compared.
        faults: one line for each fault.
        notes: what could not be checked.
        is_compared: whether every folder has checksums; without them nothing is known of its files.
    """

    kind: str
    n_files: int
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_compared: bool = True


def verify(folder: Path) -> Verification:
    """Returns the faults of a folder; those of a run include the runs and exports inside it.

    Of a folder that holds links, pipes or devices these are named, and nothing is read.

    Raises:
        UsageError: the folder is of no such kind.
        RecordsError: the manifest of records cannot be read, so that nothing is known of the rest.
    """
    if is_export(folder):
        return _foreign(folder, "export") or _verify_models([folder], "export")
    if (folder / "config.yaml").is_file() or is_run(folder):
        if foreign := _foreign(folder, "run"):
            return foreign
        inner = {path.parent for name in (CHECKSUMS_NAME, *MODEL_FILES.values()) for path in folder.rglob(name)}
        inner |= {path.parent.parent for path in folder.rglob("checkpoints/best.keras")}
        return _verify_models(sorted({folder, *inner}), "run")
    if (folder / MANIFEST_NAME).is_file() or any(folder.glob(f"*/{MANIFEST_NAME}")):
        return _foreign(folder, "records") or _verify_records(Manifest.read(folder))
    raise UsageError(f"{folder}: must be a folder of records, a run or an export. Received: none of these")


def _foreign(folder: Path, kind: str) -> Verification | None:
    reason = "a symbolic link, a pipe or a device: put a copy of the file in its place, or remove it"
    faults = tuple(f"{path}: {reason}" for path in foreign_entries(folder))
    return Verification(kind, 0, faults) if faults else None


def _verify_records(manifest: Manifest) -> Verification:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    described = descriptions.texts(manifest, RECORDS_VERSION)
    if not (manifest.folder / descriptions.CROISSANT_NAME).exists():
        del described[descriptions.CROISSANT_NAME]
    checks = [
        partial(_check_tables, manifest),
        *(partial(_check_text, manifest.folder / name, text) for name, text in described.items()),
        *(partial(_check_shard, manifest, shard) for shard in shards),
    ]
    n_tables = 2 + ("tokens_sha256" in manifest.settings)  # manifest and tracks, and tokens where there are some
    names = {MANIFEST_NAME, TRACKS_NAME, TOKENS_NAME, *described, *(shard.file for shard in shards)}
    notes = _unlisted(manifest.folder, names)
    return Verification("records", n_tables + len(described) + len(shards), tuple(_faults(checks)), notes)


def _unlisted(folder: Path, names: set[str], inner: Iterable[Path] = ()) -> tuple[str, ...]:
    """Returns a note that names the files of a folder that are not compared; none where all are."""
    files = (path for path in folder.rglob("*") if path.is_file() and not any(map(path.is_relative_to, inner)))
    others = sorted({path.relative_to(folder).as_posix() for path in files} - names)
    more = ", ..." if len(others) > MAX_NAMES else ""
    return (f"{folder}: not compared: {', '.join(others[:MAX_NAMES])}{more}",) if others else ()


def _check_tables(manifest: Manifest) -> None:
    path = manifest.folder / TRACKS_NAME
    try:
        manifest.verify([])
        manifest.read_tokens()
        n_stored = sum(len(manifest.track_ids([name])) for name in manifest.splits)
    except (KeyError, ValueError, csv.Error) as error:
        raise RecordsError(f"{path}: {error!r}") from error
    expected = sum(split.tracks for split in manifest.splits.values())
    if n_stored != expected:
        raise RecordsError(f"{path}: must list {expected} stored tracks, as in the manifest. Received: {n_stored}")


def _check_text(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        raise RecordsError(f"{path}: must describe the records as the manifest does; build the records again")


def _check_shard(manifest: Manifest, shard: Shard) -> None:
    manifest.check_shard(shard)
    path = manifest.folder / shard.file
    n_segments = sum(1 for _ in read_shard(path, manifest))
    if n_segments != shard.segments:
        raise RecordsError(f"{path}: must hold {shard.segments} segments, as in the manifest. Received: {n_segments}")


def _verify_models(folders: list[Path], kind: str) -> Verification:
    n_files, faults, notes, is_compared = 0, list[str](), list[str](), True
    for folder in folders:
        names = list[str]()
        try:
            names = check_files(folder, may_lack=FOR_TRAINING)
        except RunError as error:
            faults.append(str(error))
        n_files += len(names)
        if not (folder / CHECKSUMS_NAME).is_file():
            is_compared = False
            notes.append(f"{folder}: has no {CHECKSUMS_NAME}, so that changes of its files cannot be found")
        elif names:
            unlisted = _unlisted(folder, {CHECKSUMS_NAME, *names}, [path for path in folders if folder in path.parents])
            if is_export(folder):  # whose files are all listed
                faults += unlisted
            else:
                notes += unlisted
        faults += _faults(_export_checks(folder) if is_export(folder) else _run_checks(RunDir(folder)))
    return Verification(kind, n_files, tuple(dict.fromkeys(faults)), tuple(notes), is_compared)


def _run_checks(run: RunDir) -> list[_Check]:
    archives = [path for path in (run.checkpoint("last"), run.state) if path.is_file()]
    return [
        partial(_check_finished, run),
        partial(load_config, run.config),
        partial(_check_scorers, run.contract, run.calibration),
        partial(run.read_json, run.records),
        partial(_check_epochs, run),
        *(partial(_check_archive, path) for path in (run.checkpoint("best"), *archives)),
    ]


def _export_checks(folder: Path) -> list[_Check]:
    contract, card = folder / "contract.json", folder / CARD_JSON
    checks: list[_Check] = [
        partial(_check_scorers, contract, folder / "calibration.json"),
        partial(_check_labels, contract, folder / "labels.txt"),
    ]
    if card.is_file():
        checks.append(partial(RunDir(folder).read_json, card))
    checks.append(partial(check_model, folder))
    if (folder / SAVED_MODEL).is_file():
        checks.append(partial(_check_present, folder / "variables" / "variables.index"))
    return checks


def _check_finished(run: RunDir) -> None:
    if not run.calibration.is_file():
        raise RunError(f"{run.path}: training has not ended. Finish it with {to_finish(run)}")


def _check_scorers(contract: Path, calibration: Path) -> None:
    for part in Contract.load(contract).parts().values():
        if calibration.is_file():
            TrackScorer.load(calibration, part.contract)


def _check_epochs(run: RunDir) -> None:
    epochs = [row["epoch"] for row in run.history()]
    if epochs != list(range(1, len(epochs) + 1)):
        raise RunError(f"{run.metrics}: must have each epoch once, in order. Received: {epochs}")


def _check_archive(path: Path) -> None:
    """Compares the checksums inside a .keras or .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise RunError(f"{path}: must be a whole archive: {error}") from error
    if damaged is not None:
        raise RunError(f"{path}: damaged: {damaged} in it does not match its checksum")
    if path.suffix == ".keras":
        try:
            check_keras_file(path)
        except ValueError as error:
            raise RunError(f"{path}: must be a Keras model of tfmusic. Received: {error}") from error


def _check_labels(contract: Path, path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text.splitlines() != list(Contract.load(contract).labels):
        raise RunError(f"{path}: must list the labels of the contract, one on each line")


def _check_present(path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path}: no such file; export the run again")


def _faults(checks: Iterable[_Check]) -> Iterator[str]:
    """Yields the messages of the checks that fail."""
    for check in checks:
        try:
            check()
        except (TfmusicError, OSError) as error:
            yield str(error)
