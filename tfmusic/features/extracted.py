"""The file that says what the spectrograms of a folder are: `feature.json`, which `tfmusic extract` writes.

Spectrograms that stand under such a file are refused where another feature is wanted.
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
_LEVELS = 6  # folders upwards in which it is looked for


def write_feature(folder: Path, feature: Feature, made_by: Mapping[str, str]) -> None:
    """Writes the file into a folder; `made_by` has the versions of what decodes."""
    body = {"format": FORMAT, "feature": feature.model_dump(), "made_by": dict(made_by)}
    write_text(folder / NAME, json.dumps(body, indent=1) + "\n")


def find_feature(folder: Path) -> tuple[Path, Feature] | None:
    """Returns the file that speaks for a folder, with the feature that it names; None where there is none.

    Raises:
        DataError: there is one of that format, and it names no feature.
    """
    place = str(folder.absolute())
    for _ in range(_LEVELS):
        # As text: this is asked for every track, and of pathlib it would take longer than all else about its header.
        if os.access(f"{place}/{NAME}", os.F_OK):
            path = Path(place, NAME)
            feature = _feature_of(path)
            if feature is not None:
                return path, feature
        place = place.rpartition("/")[0]
    return None


def _feature_of(path: Path) -> Feature | None:
    """Returns the feature that a file names; None where it is something else of that name."""
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
    """Raises DataError where the folder of a spectrogram holds another feature than the one that is wanted."""
    found = find_feature(path.parent)
    if found is not None and found[1] != feature:
        raise DataError(f"{path}: the feature must be {feature}. Received: {found[1]} by {found[0]}")
