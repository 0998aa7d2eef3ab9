"""The whole build: raw data to records in a folder or on an object store."""

import csv
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING
from tfmusic.core.files import check_files, file_sha256, text_cell
from tfmusic.core.pool import run_all
from tfmusic.core.track import Dataset
from tfmusic.datasets import load
from tfmusic.datasets.files import FeatureFiles, path_id
from tfmusic.datasets.labels import check_labels_of, warn_of_lost
from tfmusic.datasets.metadata import tokens_of
from tfmusic.datasets.splits import duplicates, has_official, keep_official
from tfmusic.errors import DataError, UsageError, printable
from tfmusic.features.embeddings import read_index
from tfmusic.records import descriptions
from tfmusic.records.build.beam import BeamRun, run_beam
from tfmusic.records.build.places import Place, place_of
from tfmusic.records.build.plan import Build, Plan, make_plan
from tfmusic.records.build.shard import ShardResult, ShardSpec
from tfmusic.records.manifest import TOKENS_NAME, TRACKS_NAME, Manifest, Split, Statistics
from tfmusic.records.writer import warn_of_slow_checksums

WARN_CLIPPED = 0.01  # share of the codes
_ENOUGH_FRAMES = 1000  # half a minute; of less music the share says little
_SHOWN = 5  # tracks that a message names
RECORDS_VERSION = "1.0.0"


@dataclass(frozen=True)
class BuildSummary:
    """What was built; `place` is the folder or URL of the records."""

    place: str
    manifest: Manifest
    seconds: float
    resumed_shards: int


def build_records(
    config: Config,
    data: Path,
    out: Path | str,
    *,
    contract: Path | None = None,
    embeddings: Path | None = None,
    workers: int = 1,
    beam: BeamRun | None = None,
    overwrite: bool = False,
) -> BuildSummary:
    """Builds records of raw data and returns what they hold.

    Args:
        config: the task.
        data: folder of the raw data.
        out: the folder to write, or its URL on an object store.
        contract: run, export or records folder whose labels, feature, scale and dtype the records keep.
        embeddings: file of `tfmusic embed` whose embeddings are stored in place of spectrograms.
        workers: processes.
        beam: where Apache Beam runs, in place of local processes.
        overwrite: whether records that are there already are replaced.

    Raises:
        UsageError: `out` exists and `overwrite` is false, another build is writing it, or the contract does not fit.
        DataError: a track cannot be stored and `data.on_error` is stop, or a split would be empty.
    """
    place = place_of(out, absolute=beam is not None)
    place.check(overwrite=overwrite)
    build = prepare(config, data, contract=contract, embeddings=embeddings, workers=workers, beam=beam)
    return write_records(build, place)


def default_records(task: str) -> Path:
    """Returns the folder that records of a task are written to where no other is named."""
    return Path("records") / task / RECORDS_VERSION


def prepare(
    config: Config,
    data: Path,
    *,
    contract: Path | None = None,
    embeddings: Path | None = None,
    workers: int = 1,
    beam: BeamRun | None = None,
) -> Build:
    """Returns the build of `build_records` with its tracks, before any of them is opened; raises as that."""
    model = _read_contract(contract, config) if contract else None
    dataset = load(data.resolve() if beam else data, config.tasks)  # Beam's workers have other working folders
    if model is not None:
        dataset = _with_labels_of(model, dataset, contract)
    else:
        check_labels_of(dataset, data)
    dataset = keep_official(dataset, config.data)
    if (config.model.name == "mlp") != (embeddings is not None) and config.feature.name != EMBEDDING:
        hint = "--embeddings is for model.name=mlp" if embeddings else "pass --embeddings FILE"
        console.warn(f"the config's model is {config.model.name}: {hint}, or fit will want another model.name")
    paths, backbone_tracks = _paths(dataset, data.resolve() if beam else data), tuple[str, ...]()
    if embeddings is not None:
        index = read_index(embeddings)
        backbone_tracks = index.trained_on
        # A segment is the embedding of one window, as it is.
        record: dict[str, Any] = {"dtype": "float32", "scale": "identity", "segment_frames": 1, "hop_frames": 1}
        config = _changed(config, {"feature": index.feature}, record)
        names = _other_names(dataset, frozenset(index.track_ids), data.resolve() if beam else data)
        tracks = (
            replace(track, feature_path=embeddings, embedded_as=names.get(track.track_id)) for track in dataset.tracks
        )
        dataset = replace(dataset, tracks=tuple(tracks))
    if model is not None:
        if EMBEDDING in (model.feature.name, config.feature.name) and model.feature != config.feature:
            raise UsageError(
                f"--embeddings must be of what the model of --contract takes, {model.feature}."
                f" Received: {config.feature if embeddings else 'none'}"
            )
        record = {"dtype": model.dtype, "scale": model.scale.name, "segments": "all"}
        if (chosen := model.segments) is not None:
            record |= {"segments": chosen.choice, "segments_per_track": chosen.count, "seed": chosen.seed}
            record |= {"segment_frames": chosen.frames, "hop_frames": chosen.hop_frames}
        config = _changed(config, {"feature": model.feature}, record)
    return Build(dataset, config, workers, model.scale if model else None, backbone_tracks, beam, paths)


def _paths(dataset: Dataset, data: Path) -> tuple[str, ...]:
    """Returns the paths of the tracks in the data, as text; none where every id is the path of its file, or its end."""
    files = (track.feature_path for track in dataset.tracks)
    paths = [Path(path.relative_to(data) if path.is_relative_to(data) else path.name) for path in files]
    if all(_names(track.track_id, path) for track, path in zip(dataset.tracks, paths, strict=True)):
        return ()
    return tuple(printable(path.as_posix()) for path in paths)


def _other_names(dataset: Dataset, ids: frozenset[str], data: Path) -> dict[str, str]:
    """Returns the ids that `tfmusic embed` gives the files of a folder, for tracks whose own are not among those."""
    lacking = {track.feature_path: track.track_id for track in dataset.tracks if track.track_id not in ids}
    files = FeatureFiles.below(data).named if lacking else {}
    return {lacking[path]: path_id(name) for name, path in files.items() if path in lacking and path_id(name) in ids}


def _names(track_id: str, path: Path) -> bool:
    name = "-".join(path.parts)
    return name.endswith(track_id) or name.removesuffix(path.suffix).endswith(track_id)


def _changed(config: Config, sections: Mapping[str, Any], record: Mapping[str, Any]) -> Config:
    return config.model_copy(update={**sections, "record": config.record.model_copy(update=dict(record))})


def _read_contract(path: Path, config: Config) -> Contract:
    """Returns the contract of a run, an export or a records folder; of several tasks, that of the config's."""
    if (path / "contract.json").is_file():
        check_files(path, only=["contract.json"])
        contract = Contract.load(path / "contract.json")
    else:
        contract = Manifest.read(path).contract
    part = contract.parts().get(config.task_name)
    return part.contract if part else contract


def _with_labels_of(contract: Contract, dataset: Dataset, origin: Path | None) -> Dataset:
    """Returns the dataset with the labels of a model, so that its predictions can be scored."""
    tasks = [[head.task for head in heads] for heads in (contract.heads, dataset.heads)]
    if tasks[0] != tasks[1]:
        raise UsageError(
            f"{origin}: --contract must be of the same task or tasks as the config, {dataset.task}."
            f" Received: {contract.task}"
        )
    return replace(dataset, labels=contract.labels, heads=contract.heads)


def write_records(build: Build, place: Place) -> BuildSummary:
    """Writes the records of a build to a place and returns what they hold; raises as `build_records`."""
    begin = time.monotonic()
    warn_of_slow_checksums()
    with place.working_folder() as folder:
        plan = make_plan(build, folder)
        done = place.finished_shards(folder, plan.fingerprint())
        try:
            results = _write_shards(plan, done, build, place)
            _check_clipped(plan, build, results)
            manifest = _write_small_files(plan, build, results, folder)
        except DataError:
            place.discard()
            raise
        manifest = place.publish(folder, manifest)
    return BuildSummary(str(place), manifest, time.monotonic() - begin, len(done))


def _write_shards(plan: Plan, done: Mapping[str, ShardResult], build: Build, place: Place) -> list[ShardResult]:
    """Returns the results of all shards in the order of the plan; those that are done are not written again."""
    todo = [spec for spec in plan.specs if spec.path.name not in done]
    results = dict(done)
    total = sum(len(spec.tracks) for spec in plan.specs)
    with console.progress("records", total, "tracks") as progress:
        progress.advance(total - sum(len(spec.tracks) for spec in todo))
        finished: Iterable[tuple[ShardSpec, ShardResult]]
        if build.beam:
            finished = zip(todo, run_beam(todo, place.write, place.read, build.beam, build.workers), strict=True)
        else:
            finished = run_all(place.write, todo, build.workers)
        for spec, result in finished:
            results[result.shard.file] = result
            progress.advance(len(spec.tracks))
    return [results[spec.path.name] for spec in plan.specs]


def _check_clipped(plan: Plan, build: Build, results: list[ShardResult]) -> None:
    """Warns of codes at the ends of the scale; DataError where most of too many tracks are there."""
    if plan.contract.scale.name != "db":  # the others end at silence, where many codes may be
        return
    n_frames = sum(result.statistics.frames for result in results)
    share = sum(result.clipped_cells for result in results) / max(n_frames * plan.contract.n_bins, 1)
    most = {row: part for result in results for row, part in result.clipped.items()}
    rows = sorted(most, key=lambda row: (-most[row], row))
    names = ", ".join(f"{plan.tracks[row].track_id} ({most[row]:.0%})" for row in rows[:_SHOWN])
    more = ", ..." if len(rows) > _SHOWN else ""
    what = f"{share:.1%} of the codes are at the ends of the scale {plan.contract.scale}, in silence or beyond it"
    what += f"; most of {len(rows)} tracks: {names}{more}" if rows else ""
    if len(rows) > build.config.record.max_clipped * len(plan.splits) and n_frames >= _ENOUGH_FRAMES:
        raise DataError(
            f"{what}. Little music would be left. Look at the data with tfmusic inspect; if it is as it should be, set"
            " record.max_clipped=1"
        )
    if share > WARN_CLIPPED or rows:
        console.warn(what)


def _write_small_files(plan: Plan, build: Build, results: list[ShardResult], folder: Path) -> Manifest:
    """Writes into a folder all files beside the shards but the manifest, which is returned."""
    skipped = dict(plan.unreadable)
    for result in results:
        skipped |= result.skipped
    if skipped:
        usable = [track for row, track in enumerate(plan.tracks) if row not in skipped]
        warn_of_lost(build.dataset, usable, build.dataset.task)
    _write_tracks(plan, skipped, build.paths, folder / TRACKS_NAME)
    _write_tokens(plan, folder / TOKENS_NAME)
    manifest = _manifest(plan, build, results, skipped, folder)
    descriptions.write(manifest, RECORDS_VERSION)
    return manifest


def _manifest(
    plan: Plan, build: Build, results: list[ShardResult], skipped: Mapping[int, str], folder: Path
) -> Manifest:
    splits = _splits(plan, results, skipped)
    n_frames = sum(split.statistics.frames for split in splits.values())
    return Manifest(
        folder=folder,
        name=plan.contract.task,
        contract=plan.contract,
        splits=splits,
        skipped=tuple({"track_id": plan.tracks[row].track_id, "reason": skipped[row]} for row in sorted(skipped)),
        clipped_cells=sum(result.clipped_cells for result in results),
        total_cells=n_frames * plan.contract.n_bins,
        source_bytes=plan.source_bytes,
        tracks_sha256=file_sha256(folder / TRACKS_NAME),
        settings=_settings(plan, build, folder),
    )


def _splits(plan: Plan, results: list[ShardResult], skipped: Mapping[int, str]) -> dict[str, Split]:
    splits = {}
    for name in dict.fromkeys(spec.split for spec in plan.specs):
        parts = [result for spec, result in zip(plan.specs, results, strict=True) if spec.split == name]
        n_tracks = sum(split == name and row not in skipped for row, split in enumerate(plan.splits))
        if n_tracks == 0:
            rows = [row for row, split in enumerate(plan.splits) if split == name and row in skipped]
            why = f" of {len(rows):,}, such as {plan.tracks[rows[0]].track_id}: {skipped[rows[0]]}" if rows else ""
            raise DataError(f"split {name}: must hold at least one usable track. Received: none{why}")
        shards = tuple(part.shard for part in parts)
        statistics = Statistics.merge([part.statistics for part in parts])
        splits[name] = Split(shards, n_tracks, sum(shard.segments for shard in shards), statistics)
    return splits


def _settings(plan: Plan, build: Build, folder: Path) -> dict[str, Any]:
    """Returns what else the manifest says of a build; younger keys of format 1 only where they are not the default."""
    config, tokens = build.config, folder / TOKENS_NAME
    settings: dict[str, Any] = {
        "folds": config.data.folds, "split_seed": config.data.seed, "order_seed": config.record.seed
    }  # fmt: skip
    if has_official(plan.tracks):
        settings["splits"] = "official"
    if config.record.chosen is not None:
        settings |= {"segments": config.record.segments, "segments_per_track": config.record.segments_per_track}
    # `perturb` and `trunk_tracks` are the names of format 1 for offline_augment and backbone_tracks.
    if config.offline_augment.copies:
        settings["perturb"] = config.offline_augment.model_dump()
    if build.backbone_tracks:
        settings["trunk_tracks"] = build.backbone_tracks
    if same := duplicates(build.dataset.tracks):
        settings["duplicates"] = same
    if tokens.is_file():
        settings["tokens_sha256"] = file_sha256(tokens)
    return settings


def _write_tokens(plan: Plan, path: Path) -> None:
    """Writes the metadata tokens of every track, a line each; no file where no track has any."""
    lines = [tokens_of(track.metadata) for track in plan.tracks]
    if any(lines):
        path.write_text("".join(json.dumps(tokens, ensure_ascii=False) + "\n" for tokens in lines), encoding="utf-8")


def _write_tracks(plan: Plan, skipped: Mapping[int, str], paths: Sequence[str], path: Path) -> None:
    header = ("row", "track_id", "split", "labels", "n_frames", "artists", "album", "skipped")
    copies = ("",) * (len(plan.tracks) - len(paths))  # after the tracks; the file is that of their source
    path_cells = [(text_cell(name),) for name in (*paths, *copies)] if paths else [()] * len(plan.tracks)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*header, "path") if paths else header)
        for row, track in enumerate(plan.tracks):
            labels, artists = (json.dumps(names, ensure_ascii=False) for names in (track.labels, track.artists))
            cells = (row, track.track_id, plan.splits[row], labels, plan.n_frames[row], artists)
            texts = (text_cell(track.album or ""), text_cell(skipped.get(row, "")))
            table.writerow((*cells, *texts, *path_cells[row]))
