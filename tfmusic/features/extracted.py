"""`feature.json`, the file in which `tfmusic extract` names the feature of the spectrograms of a folder.

Spectrograms in or below that folder are refused if a config names another feature.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tfmusic.core.feature import Feature
from tfmusic.core.files import read_json_file, write_text
from tfmusic.errors import DataError

NAME = "feature.json"
FORMAT = "tfmusic features 1"
_MAX_LEVELS = 6  # of parent folders to search


def write_feature(folder: Path, feature: Feature, made_by: Mapping[str, str]) -> None:
    """Writes the file into a folder; `made_by` has the versions of the libraries that decode audio."""
    body = {"format": FORMAT, "feature": feature.model_dump(), "made_by": dict(made_by)}
    write_text(folder / NAME, json.dumps(body, indent=1) + "\n")


def find_feature(folder: Path) -> tuple[Path, Feature] | None:
    """Returns the nearest file in a folder or its parents, and the feature that it names; None without such a file.

    Raises:
        DataError: the file has the right format, but no valid feature.
    """
    parent = str(folder.absolute())
    for _ in range(_MAX_LEVELS):
        # A string: this runs for every track, and pathlib would take longer than reading the track's header.
        if os.access(f"{parent}/{NAME}", os.F_OK):
            path = Path(parent, NAME)
            feature = _feature_of(path)
            if feature is not None:
                return path, feature
        parent = parent.rpartition("/")[0]
    return None


def _feature_of(path: Path) -> Feature | None:
    """Returns the feature that a file names; None for a file of another program."""
    try:
        body = read_json_file(path)
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        return None
    try:
        return Feature.from_dict(body.get("feature"))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def check_extracted(path: Path, feature: Feature) -> None:
    """Raises DataError if a `feature.json` above a spectrogram names another feature."""
    named = find_feature(path.parent)
    if named is not None and named[1] != feature:
        raise DataError(f"{path}: the feature must be {feature}. Received: {named[1]}, named in {named[0]}")
