"""`tfmusic inspect CONFIG --data DATA`: look at labels, lengths, spectrograms and faults before training."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config
    from tfmusic.core.feature import Feature
    from tfmusic.reports.inspection import Example, Inspection

MARKER = "inspection.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "config", nargs="?", help="task or path of a .yaml file (default: class folders of 128-bin mel-spectrograms)"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="override keys of the config"
    )
    parser.add_argument("--data", type=Path, help="folder of the raw data")
    parser.add_argument("--records", type=Path, help="records folder to look at, in place of CONFIG and --data")
    parser.add_argument("--out", type=Path, help="folder for pictures (PNG) and inspection.json")
    parser.add_argument("--examples", type=arguments.positive, default=8, help="spectrograms a label (default 8)")
    parser.add_argument("--pages", type=arguments.positive, default=20, help="labels that get a page (default 20)")
    parser.add_argument("--workers", type=arguments.positive, default=os.cpu_count(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> None:
    """Prints the tables, and writes the pictures where a folder is given."""
    _check_form(args)
    from tfmusic.console import console
    from tfmusic.core.files import check_target
    from tfmusic.reports.inspection import format_inspection
    from tfmusic.reports.pictures import choose_fonts, picture_names

    if args.out is not None:
        check_target(args.out, overwrite=args.overwrite, marker=MARKER, what="inspections")
    source = _inspect_records(args.records) if args.records else _inspect_data(args)
    inspection = source.inspection
    fonts, missing = choose_fonts([*inspection.counts, inspection.name])
    names = picture_names(list(inspection.counts), missing)
    as_numbers = args.out is not None and any(label != name for label, name in names.items())
    console.show(*format_inspection(inspection, dict(names) if as_numbers else {}).split("\n"))
    console.result(inspection=inspection.to_dict())
    if as_numbers:
        console.warn("this machine has no font for some labels: pictures show their numbers instead")
    if args.out is not None:
        _write(args, source, names, fonts)
        console.say(f"pictures: {args.out}")


def _check_form(args: argparse.Namespace) -> None:
    """Raises UsageError where neither data nor records are given, or both; a folder in place of CONFIG is either."""
    if args.records and (args.config or args.data):
        raise UsageError(f"--records needs no CONFIG and no --data. Received: {args.config or args.data}")
    if args.data or args.records:
        return
    if args.config is None or not Path(args.config).is_dir():
        form = f"tfmusic inspect {args.config or 'CONFIG'} --data DATA, or tfmusic inspect --records RECORDS"
        raise UsageError(f"inspect must be given --data or --records: {form}")
    folder, args.config = Path(args.config), arguments.take_word(args)
    if not (folder / "manifest.json").is_file():
        args.data = folder
    elif args.config or args.overrides:
        raise UsageError(f"{folder}: holds records, which are looked at as they are. Received: more arguments")
    else:
        args.records = folder


@dataclass(frozen=True)
class _Source:
    """What was inspected, and what yields stretches of some of its tracks."""

    inspection: "Inspection"
    examples_fn: "Callable[[set[str]], Iterator[Example]]"
    feature: "Feature"
    is_power: bool
    paths: Mapping[str, Path] = field(default_factory=dict)  # of the tracks of raw data


def _inspect_records(folder: Path) -> _Source:
    from tfmusic.records.manifest import Manifest
    from tfmusic.reports.inspection import examples_of_records, inspect_records

    manifest = Manifest.read(folder)
    inspection, examples_fn = inspect_records(manifest), partial(examples_of_records, manifest)
    return _Source(inspection, examples_fn, manifest.contract.feature, is_power=False)


def _inspect_data(args: argparse.Namespace) -> _Source:
    from tfmusic.console import console
    from tfmusic.core.feature import POWER
    from tfmusic.datasets import load
    from tfmusic.reports.inspection import examples_of_data, inspect_data

    config = _config(args)
    dataset, feature = load(args.data, config.tasks), config.feature
    if args.config is None:
        dataset = replace(dataset, task=args.data.resolve().name)
    with console.progress("inspect", len(dataset.tracks), "tracks") as progress:
        inspection = inspect_data(
            dataset,
            feature,
            config.data,
            workers=args.workers,
            on_track=progress.advance,
        )
    examples_fn = partial(examples_of_data, dataset, feature)
    paths = {track.track_id: track.feature_path for track in dataset.tracks}
    return _Source(inspection, examples_fn, feature, is_power=feature.name in POWER, paths=paths)


def _config(args: argparse.Namespace) -> "Config":
    from tfmusic.config.loading import config_from_text

    if args.config is not None and "=" not in args.config:
        return arguments.read_config(args)
    if args.config is not None or args.overrides:
        raise UsageError(f"overrides need the config that they change: inspect CONFIG {args.config} --data {args.data}")
    return config_from_text("task: inspect\ndata: {loader: folder}\n", "inspect")


def _write(args: argparse.Namespace, source: _Source, names: Mapping[str, str], fonts: list[str]) -> None:
    """Draws everything in a folder beside the target and puts it in its place."""
    from tfmusic.core.files import replacing_folder, write_json
    from tfmusic.features.audio import is_audio
    from tfmusic.reports.inspection import choose_examples, write_sounds
    from tfmusic.reports.pictures import Pictures

    with replacing_folder(args.out) as partial_folder:
        pictures = Pictures(source.inspection, names, fonts, partial_folder)
        pictures.draw()
        pages = choose_examples(source.inspection, args.examples, args.pages)
        wanted = {track_id for ids in pages.values() for track_id in ids}
        examples = {example.track_id: example for example in source.examples_fn(wanted)}
        sounds = []
        for number, (label, ids) in enumerate(pages.items(), 1):
            page = [examples[track_id] for track_id in ids if track_id in examples]
            if page:
                pictures.examples(number, label, page, feature=source.feature, is_power=source.is_power)
                if is_audio(path := source.paths.get(page[0].track_id, Path())):
                    sounds.append((f"examples-{number:02d}", label, page[0], path))
        if sounds:
            write_sounds(partial_folder, source.inspection.name, sounds)
        write_json(partial_folder / MARKER, source.inspection.to_dict() | {"pages": list(pages)})
