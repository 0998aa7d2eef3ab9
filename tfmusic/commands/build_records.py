"""`tfmusic build-records q2 --data DIR`: spectrograms and labels to TFRecord shards."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError
from tfmusic.records.build.beam import RUNNERS, BeamRun

if TYPE_CHECKING:
    from tfmusic.config.sections import Config
    from tfmusic.core.contract import Contract
    from tfmusic.core.scale import Scale, ScaleName
    from tfmusic.core.track import Dataset
    from tfmusic.records.build.build import BuildSummary
    from tfmusic.records.build.plan import BuildOptions
    from tfmusic.records.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--data", type=arguments.folder, required=True, help="folder of the raw data")
    parser.add_argument("--out", help="records folder to write, or its URL on a store (default records/TASK/VERSION)")
    parser.add_argument("--num-shards", type=arguments.positive, help="shards a split, at least")
    parser.add_argument(
        "--contract", type=arguments.folder, help="run, export or records whose labels, feature, scale, dtype to take"
    )
    parser.add_argument("--embeddings", type=Path, help="file of tfmusic embed, to take in place of spectrograms")
    parser.add_argument("--workers", type=arguments.positive, default=os.cpu_count(), help="processes")
    parser.add_argument("--runner", choices=RUNNERS, help="Apache Beam's, in place of the processes of this machine")
    parser.add_argument("--beam-options", default="", metavar="'--KEY=VALUE ...'", help="options of the runner")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> None:
    """Builds the records and prints what they hold."""
    config = arguments.read_config(args)
    if args.print_config:
        return arguments.print_config(config)
    beam = _beam(args)
    if beam is not None:  # workers have working folders of their own
        args.data = args.data.resolve()
    from tfmusic.console import console
    from tfmusic.records.store import Store, is_url

    out = args.out or arguments.default_records(config.task_name)
    contract = _given_contract(args.contract, config)
    dataset = load(config, args.data)
    target = Store(str(out)) if is_url(out) else Path(out).resolve() if beam else Path(out)
    _check(target, overwrite=args.overwrite)
    if contract is not None:
        dataset = _with_labels_of(contract, dataset, args.contract)
    if (config.model.name == "mlp") != (args.embeddings is not None):
        wanted = "pass --embeddings FILE" if args.embeddings is None else "--embeddings is for model.name=mlp"
        console.warn(f"the config's model is {config.model.name}: {wanted}, or fit will want another model.name")
    if args.embeddings is not None:
        tracks = tuple(replace(track, feature_path=args.embeddings) for track in dataset.tracks)
        dataset = replace(dataset, tracks=tracks)
    dataset = _with_splits(dataset, config)
    console.say(_describe(dataset))
    if args.dry_run:
        return console.show(f"dry run: would write {out}")
    options = replace(_options(config, args, contract), beam=beam)
    return _show(_build(dataset, target, options, overwrite=args.overwrite), config)


def _check(target: "Path | Store", *, overwrite: bool) -> None:
    """Checks that the records may be written, before anything is read."""
    from tfmusic.core.files import check_target
    from tfmusic.records.build.remote import check_store
    from tfmusic.records.manifest import MANIFEST_NAME

    if isinstance(target, Path):
        check_target(target, overwrite=overwrite, marker=MANIFEST_NAME, what="records")
    else:
        check_store(target, overwrite=overwrite)


def _build(dataset: "Dataset", target: "Path | Store", options: "BuildOptions", *, overwrite: bool) -> "BuildSummary":
    from tfmusic.records.build.build import build_records
    from tfmusic.records.build.remote import build_on_store

    if isinstance(target, Path):
        return build_records(dataset, target, options, overwrite=overwrite)
    return build_on_store(dataset, target, options, overwrite=overwrite)


def _beam(args: argparse.Namespace) -> BeamRun | None:
    if args.runner is None and args.beam_options:
        raise UsageError(f"--beam-options are for --runner {' or '.join(RUNNERS)}. Received: no --runner")
    if args.runner is None:
        return None
    run = BeamRun(args.runner, args.beam_options)
    run.check()
    return run


def _options(config: "Config", args: argparse.Namespace, contract: "Contract | None") -> "BuildOptions":
    from tfmusic.core.feature import EMBEDDING
    from tfmusic.features.embeddings import read_index
    from tfmusic.records.build.plan import BuildOptions

    feature, dtype = config.feature, str(config.record.dtype)
    scale: Scale | ScaleName = config.record.scale
    segment_frames, hop_frames = config.record.segment_frames, config.record.hop_frames
    backbone_tracks: tuple[str, ...] = ()
    if args.embeddings is not None:  # an example is the embedding of one segment, as it is
        index = read_index(args.embeddings)
        feature, dtype, scale, segment_frames, hop_frames = index.feature, "float32", "identity", 1, 1
        backbone_tracks = index.trained_on
    if contract is not None:
        if (args.embeddings is not None or contract.feature.name == EMBEDDING) and contract.feature != feature:
            raise UsageError(
                f"--embeddings must be of what the model of --contract takes, {contract.feature}."
                f" Received: {feature if args.embeddings else 'none'}"
            )
        feature, dtype, scale = contract.feature, contract.dtype, contract.scale
    return BuildOptions(
        feature=feature,
        segment_frames=segment_frames,
        hop_frames=hop_frames,
        dtype=dtype,
        scale=scale,
        num_shards=args.num_shards or config.record.num_shards,
        shard_bytes=config.record.shard_mib << 20,
        n_folds=config.data.folds,
        split_seed=config.data.seed,
        order_seed=config.record.seed,
        on_error=config.data.on_error,
        min_s=config.data.min_s,
        segments=config.record.segments,
        segments_per_track=config.record.segments_per_track,
        offline_augment=config.offline_augment,
        backbone_tracks=backbone_tracks,
        workers=args.workers,
    )


def load(config: "Config", folder: Path) -> "Dataset":
    """Returns the tracks of the task, or those of several tasks as one dataset."""
    from tfmusic.datasets import LOADERS
    from tfmusic.datasets.multitask import join

    loader = LOADERS[config.data.loader]
    datasets = [loader(folder, task=task, **options) for task, options in config.tasks.items()]
    return datasets[0] if len(datasets) == 1 else join(datasets)


def _with_splits(dataset: "Dataset", config: "Config") -> "Dataset":
    """Returns the dataset with its official splits, or without them where folds are asked for; warns of leaks."""
    from tfmusic.console import console
    from tfmusic.datasets.splits import has_official, leaking

    if config.data.deals_folds:
        dataset = replace(dataset, tracks=tuple(replace(track, split=None) for track in dataset.tracks))
    if not any(track.artists or track.album for track in dataset.tracks):
        what = "splits" if has_official(dataset.tracks) else "folds"
        console.warn(f"no track has an artist or album: tracks of one artist may stand in several {what}")
    leaks = set(leaking(dataset.tracks))
    if not leaks:
        return dataset
    count = f"tracks of the official train or validation split whose artist is scored as well: {len(leaks)}"
    if not config.data.drops_leaks:
        console.warn(f"{count}; scores will flatter; data.artist_leaks=drop leaves them out")
        return dataset
    console.say(f"{count}; left out")
    return replace(dataset, tracks=tuple(track for row, track in enumerate(dataset.tracks) if row not in leaks))


def _given_contract(path: Path | None, config: "Config") -> "Contract | None":
    """Returns the contract of a run, an export or a records folder; of several tasks, that of the config's."""
    from tfmusic.core.contract import Contract
    from tfmusic.core.files import check_files
    from tfmusic.records.manifest import Manifest

    if path is None:
        return None
    has_own = (path / "contract.json").is_file()
    if has_own:
        check_files(path, only=["contract.json"])
    contract = Contract.load(path / "contract.json") if has_own else Manifest.read(path).contract
    part = contract.parts().get(config.task_name)
    return part.contract if part else contract


def _with_labels_of(contract: "Contract", dataset: "Dataset", origin: Path) -> "Dataset":
    """Returns the dataset with the labels of a model, so that its answers can be scored."""
    tasks = [[head.task for head in heads] for heads in (contract.heads, dataset.heads)]
    if tasks[0] != tasks[1]:
        raise UsageError(
            f"{origin}: --contract must be of the same task or tasks as the config, {dataset.task}."
            f" Received: {contract.task}"
        )
    return replace(dataset, labels=contract.labels, heads=contract.heads)


def _describe(dataset: "Dataset") -> str:
    artists = {name for track in dataset.tracks for name in track.metadata.get("artists", track.artists)}
    what = {"single": "labels", "multi": "tags", "tasks": "labels and tags"}[dataset.kind]
    return f"{dataset.task}: {len(dataset.tracks):,} tracks, {len(dataset.labels)} {what}, {len(artists):,} artists"


def _show(summary: "BuildSummary", config: "Config") -> None:
    from tfmusic.console import console

    manifest, stats = summary.manifest, summary.manifest.splits
    seconds_per_frame = 1 / manifest.contract.frames_per_s
    rows = [
        (name, split.tracks, split.segments, split.statistics.frames * seconds_per_frame / 3600,
         len(split.shards), sum(shard.bytes for shard in split.shards) / 1e6)
        for name, split in stats.items()
    ]  # fmt: skip
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    console.table(rows, ("split", "tracks", "segments", "hours", "shards", "MB"), digits=2)
    clipped = 100 * manifest.clipped_cells / max(manifest.total_cells, 1)
    console.say(
        f"{manifest.source_bytes / 1e6:,.1f} MB read, {clipped:.2f} % of cells at the ends of the scale"
        f" {manifest.contract.scale}, {len(manifest.skipped)} tracks skipped,"
        f" {summary.seconds:.1f} s"
    )
    if summary.resumed_shards:
        console.say(f"went on from {summary.resumed_shards} finished shards of an interrupted build")
    for skipped in manifest.skipped:
        console.say(f"skipped {skipped['track_id']}: {skipped['reason']}")
    console.result(records=summary.place, splits={name: split.tracks for name, split in manifest.splits.items()})
    console.result(skipped=[dict(one) for one in manifest.skipped])
    console.say(f"records: {summary.place}")
