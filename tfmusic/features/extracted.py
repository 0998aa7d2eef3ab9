"""The file that says what the spectrograms of a folder are: `feature.json`, which `tfmusic extract` writes.

Spectrograms that stand under such a file are refused where another feature is wanted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmusic.errors import DataError
from tfmusic.folders import write_text
from tfmusic.jsonfile import read_json_file

NAME = "feature.json"
FORMAT = "tfmusic features 1"
_LEVELS = 6  # folders upwards in which it is looked for


def write_feature(folder: Path, feature: Mapping[str, Any], made_by: Mapping[str, str]) -> None:
    """Writes the file into a folder; `made_by` has the versions of what decodes."""
    body = {"format": FORMAT, "feature": dict(feature), "made_by": dict(made_by)}
    write_text(folder / NAME, json.dumps(body, indent=1) + "\n")


def find_feature(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Returns the file that speaks for a folder, with the feature that it names; None where there is none.

    Raises:
        DataError: there is one of that format, and it names no feature.
    """
    for place in [folder, *folder.absolute().parents][:_LEVELS]:
        try:
            body = read_json_file(place / NAME)
        except (OSError, ValueError):  # none, or something else of that name
            continue
        if isinstance(body, dict) and body.get("format") == FORMAT:
            if not isinstance(body.get("feature"), dict):
                raise DataError(f"{place / NAME}: must name a feature. Received: {body.get('feature')!r}")
            return place / NAME, body["feature"]
    return None


def check_extracted(path: Path, feature: Mapping[str, Any]) -> None:
    """Raises DataError where the folder of a spectrogram holds another feature than the one that is wanted."""
    found = find_feature(path.parent)
    if found is not None and found[1] != dict(feature):
        raise DataError(f"{path}: the feature must be {dict(feature)}. Received: {found[1]} by {found[0]}")
