"""`tfmusic inspect DATA|RECORDS [CONFIG]`: look at labels, lengths, spectrograms and faults before training."""

import argparse
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmusic.commands import arguments
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config
    from tfmusic.core.feature import Feature
    from tfmusic.core.track import Dataset
    from tfmusic.reports.inspection import Inspection
    from tfmusic.reports.pictures import Example

MARKER = "inspection.json"
_EXAMPLE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("data", type=Path, metavar="DATA|RECORDS", help="folder of the raw data, or records folder")
    parser.add_argument(
        "config", nargs="?", help="of raw data: task or path of a .yaml file (default: class folders of 128-bin mels)"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )
    parser.add_argument("--out", type=Path, help="folder for pictures (PNG) and inspection.json")
    parser.add_argument("--examples", type=arguments.positive, default=8, help="spectrograms a label (default 8)")
    parser.add_argument("--pages", type=arguments.positive, default=20, help="labels that get a page (default 20)")
    parser.add_argument("--workers", type=arguments.positive, default=os.cpu_count(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> None:
    """Prints the tables, and writes the pictures where a folder is given."""
    from tfmusic.console import console
    from tfmusic.core.files import check_target
    from tfmusic.reports.fonts import choose_fonts, picture_names
    from tfmusic.reports.inspection import format_inspection

    if args.out is not None:
        check_target(args.out, overwrite=args.overwrite, marker=MARKER, what="inspections")
    source: _Source = _Records(args) if _holds_records(args) else _Data(args)
    found = source.inspect()
    fonts, missing = choose_fonts([*found.counts, found.name])
    names = picture_names(list(found.counts), missing)
    as_numbers = args.out is not None and any(label != name for label, name in names.items())
    console.show(format_inspection(found, dict(names) if as_numbers else {}))
    console.result(inspection=found.to_dict())
    if as_numbers:
        console.warn("this machine has no font for some labels: pictures show their numbers instead")
    if args.out is not None:
        _write(args, source, found, names, fonts)
        console.say(f"pictures: {args.out}")


def _write(
    args: argparse.Namespace, source: "_Source", found: "Inspection", names: Mapping[str, str], fonts: list[str]
) -> None:
    """Draws everything beside the folder and puts it in its place."""
    from tfmusic.core.files import put_in_place, write_json
    from tfmusic.reports.inspection import faulty_ids
    from tfmusic.reports.pictures import Pictures

    partial = args.out.parent / f".{args.out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        pictures = Pictures(found, names, fonts, partial)
        pictures.draw()
        wanted = _choose(found, faulty_ids(found.faults), args.examples, args.pages)
        examples = {
            example.track_id: example for example in source.examples({i for ids in wanted.values() for i in ids})
        }
        for number, (label, ids) in enumerate(wanted.items(), 1):
            some = [examples[track_id] for track_id in ids if track_id in examples]
            if some:
                pictures.examples(
                    number, label, some, frames_per_s=source.feature.frames_per_s, is_power=source.is_power
                )
        write_json(partial / MARKER, found.to_dict() | {"pages": list(wanted)})
        put_in_place(partial, args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _choose(found: "Inspection", faulty: set[str], count: int, n_labels: int) -> dict[str, list[str]]:
    """Returns tracks of the most common labels, spread over all that a label has."""
    chosen = {}
    for label in list(found.counts)[:n_labels]:
        ids = [item.track_id for item in found.items if label in item.labels and item.track_id not in faulty]
        step = max(len(ids) / count, 1.0)
        chosen[label] = [ids[int(i * step)] for i in range(min(count, len(ids)))]
    return chosen


def _holds_records(args: argparse.Namespace) -> bool:
    """Returns whether a folder is one of records, or holds one and no config says that it is raw data."""
    from tfmusic.records.manifest import MANIFEST_NAME

    below = not args.config and any(args.data.glob(f"*/{MANIFEST_NAME}"))
    return below or (args.data / MANIFEST_NAME).is_file()


class _Source(ABC):
    """Where tracks come from: what there is, and stretches of some of them."""

    feature: "Feature"
    is_power = False  # whether examples are linear power; what is stored is on its scale already

    @abstractmethod
    def inspect(self) -> "Inspection":
        """Returns the inspection."""

    @abstractmethod
    def examples(self, track_ids: set[str]) -> "Iterator[Example]":
        """Yields a stretch of every track, from its middle."""

    def _example(self, track_id: str, values: Any) -> "Example":
        from tfmusic.reports.pictures import Example

        rate = self.feature.frames_per_s
        frames = min(int(_EXAMPLE_S * rate), values.shape[1])
        start = (values.shape[1] - frames) // 2
        return Example(track_id, values[:, start : start + frames].copy(), start / rate)


class _Data(_Source):
    """Raw data of any loader."""

    def __init__(self, args: argparse.Namespace) -> None:
        from tfmusic.core.feature import POWER

        self.args, self.config = args, _config(args)
        self.feature = self.config.feature
        self.is_power = self.feature.name in POWER
        self.dataset = self._load()

    def _load(self) -> "Dataset":
        from tfmusic.commands.build_records import load

        dataset = load(self.config, self.args.data)
        return dataset if self.args.config else replace(dataset, task=self.args.data.resolve().name)

    def inspect(self) -> "Inspection":
        """Returns the inspection after reading every file."""
        from tfmusic.console import console
        from tfmusic.reports.inspection import inspect_data

        with console.progress("inspect", len(self.dataset.tracks), "tracks") as progress:
            return inspect_data(
                self.dataset,
                self.feature,
                min_s=self.config.data.min_s,
                workers=self.args.workers,
                on_track=progress.advance,
            )

    def examples(self, track_ids: set[str]) -> "Iterator[Example]":
        """Yields a stretch of every track; reads the files again."""
        from tfmusic.features.read import read_feature

        for track in self.dataset.tracks:
            if track.track_id in track_ids:
                yield self._example(track.track_id, read_feature(track.feature_path, track.track_id, self.feature))


class _Records(_Source):
    """A records folder, which says itself what it holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        from tfmusic.records.manifest import Manifest

        if args.config or args.overrides:
            raise UsageError(f"{args.data} holds records, which need no config. Received: {args.config}")
        self.manifest: Manifest = Manifest.read(args.data)
        self.feature = self.manifest.contract.feature

    def inspect(self) -> "Inspection":
        """Returns the inspection of tracks.csv."""
        from tfmusic.reports.inspection import inspect_records

        return inspect_records(self.manifest)

    def examples(self, track_ids: set[str]) -> "Iterator[Example]":
        """Yields a stretch of every track, as stored."""
        from tfmusic.records.reader import iterate_tracks

        left = set(track_ids)
        for split in self.manifest.splits:
            for track in iterate_tracks(self.manifest, split) if left else ():
                if track.track_id in left:
                    left.remove(track.track_id)
                    yield self._example(track.track_id, track.codes.T)


def _config(args: argparse.Namespace) -> "Config":
    from tfmusic.config.loading import config_from_text

    if args.config is not None and "=" not in args.config:
        return arguments.read_config(args)
    if args.config is not None or args.overrides:
        raise UsageError("inspect DATA CONFIG key.path=value: overrides need the config that they change")
    return config_from_text("task: inspect\ndata: {loader: folder}\n", "inspect")
