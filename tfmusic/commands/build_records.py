"""`tfmusic build-records CONFIG --data DATA`: spectrograms and labels to TFRecord shards."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError
from tfmusic.records.build.beam import RUNNERS, BeamRun

if TYPE_CHECKING:
    from tfmusic.core.track import Dataset
    from tfmusic.records.build.build import BuildSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--data", type=arguments.folder, required=True, help="folder of the raw data")
    parser.add_argument("--out", help="records folder to write, or its URL on a store (default records/TASK/VERSION)")
    parser.add_argument("--num-shards", type=arguments.positive, help="shards a split, at least (record.num_shards)")
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
    if args.num_shards:
        args.overrides = [*args.overrides, f"record.num_shards={args.num_shards}"]
    config = arguments.read_config(args)
    if args.print_config:
        return arguments.print_config(config)
    beam = _beam(args)
    from tfmusic.console import console
    from tfmusic.records.build.build import default_records, prepare, write_records
    from tfmusic.records.build.places import place_of

    out = args.out or default_records(config.task_name)
    place = place_of(out, absolute=beam is not None)
    build = prepare(
        config, args.data, contract=args.contract, embeddings=args.embeddings, workers=args.workers, beam=beam
    )
    place.check(overwrite=args.overwrite)
    console.say(_describe(build.dataset))
    if args.dry_run:
        return console.show(f"dry run: would write {out}")
    return _show(write_records(build, place))


def _beam(args: argparse.Namespace) -> BeamRun | None:
    if args.runner is None and args.beam_options:
        raise UsageError(f"--beam-options are for --runner {' or '.join(RUNNERS)}. Received: no --runner")
    if args.runner is None:
        return None
    run = BeamRun(args.runner, args.beam_options)
    run.check()
    return run


def _describe(dataset: "Dataset") -> str:
    artists = {name for track in dataset.tracks for name in track.metadata.get("artists", track.artists)}
    what = {"single": "labels", "multi": "tags", "tasks": "labels and tags"}[dataset.kind]
    return f"{dataset.task}: {len(dataset.tracks):,} tracks, {len(dataset.labels)} {what}, {len(artists):,} artists"


def _show(summary: "BuildSummary") -> None:
    from tfmusic.console import console

    manifest = summary.manifest
    seconds_per_frame = 1 / manifest.contract.frames_per_s
    rows = [
        (name, split.tracks, split.segments, split.statistics.frames * seconds_per_frame / 3600,
         len(split.shards), sum(shard.bytes for shard in split.shards) / 1e6)
        for name, split in manifest.splits.items()
    ]  # fmt: skip
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    console.table(rows, ("split", "tracks", "segments", "hours", "shards", "MB"), digits=2)
    clipped = 100 * manifest.clipped_cells / max(manifest.total_cells, 1)
    console.say(
        f"{manifest.source_bytes / 1e6:,.1f} MB read, {clipped:.2f} % of codes at the ends of the scale"
        f" {manifest.contract.scale}, {len(manifest.skipped)} tracks skipped, {summary.seconds:.1f} s"
    )
    if summary.resumed_shards:
        console.say(f"went on from {summary.resumed_shards} finished shards of an interrupted build")
    for skipped in manifest.skipped:
        console.say(f"skipped {skipped['track_id']}: {skipped['reason']}")
    console.result(records=summary.place, splits={name: split.tracks for name, split in manifest.splits.items()})
    console.result(skipped=[dict(track) for track in manifest.skipped])
    console.say(f"records: {summary.place}")
