"""What the scored tracks have in common with those that trained the model: names, artists, albums."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfmusic.core.rundir import RunDir
from tfmusic.errors import RecordsError
from tfmusic.records.manifest import Manifest


@dataclass(frozen=True)
class Audit:
    """Counts of scored tracks.

    Attributes:
        scored: all of them.
        trained_on: whose name is that of a training track of the model that scored them.
        in_backbone: whose name is that of a track that trained what the model began with.
        shared_group: which share an artist or album with a training track; None where the records that the model was
            trained on are gone.
        ungrouped: of which neither artist nor album is known, so that nothing can be said.
    """

    scored: int
    trained_on: int
    in_backbone: int
    shared_group: int | None
    ungrouped: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts for JSON."""
        return asdict(self)


def audit(scored: Iterable[tuple[RunDir, list[str]]], manifest: Manifest) -> Audit:
    """Returns the audit of tracks, each by the run that scored it.

    Args:
        scored: runs, each with the names of the tracks that it scored.
        manifest: the records of these tracks.
    """
    return _total([_audit_one(run, track_ids, manifest) for run, track_ids in scored])


def _audit_one(run: RunDir, track_ids: list[str], manifest: Manifest) -> Audit:
    used, mine = run.read_json(run.records), set(track_ids)
    groups = {name: found for name, found in manifest.groups(list(manifest.splits)).items() if name in mine}
    training = _training_groups(used, manifest)
    return Audit(
        len(mine),
        len(mine & set(used["training_tracks"])),
        len(mine & set(used.get("backbone_tracks", ()))),
        None if training is None else sum(bool(found & training) for found in groups.values()),
        sum(not found for found in groups.values()),
    )


def _training_groups(used: dict[str, Any], manifest: Manifest) -> frozenset[str] | None:
    """Returns the artists and albums of the training tracks; None where they are not known any more."""
    if used["tracks_sha256"] != manifest.tracks_sha256:
        try:
            manifest = Manifest.read(Path(used["folder"]))
        except RecordsError:
            return None
        if used["tracks_sha256"] != manifest.tracks_sha256:
            return None
    return frozenset().union(*manifest.groups(used["training"]).values())


def _total(parts: list[Audit]) -> Audit:
    shared = [part.shared_group for part in parts if part.shared_group is not None]
    return Audit(
        sum(part.scored for part in parts),
        sum(part.trained_on for part in parts),
        sum(part.in_backbone for part in parts),
        sum(shared) if len(shared) == len(parts) else None,
        sum(part.ungrouped for part in parts),
    )
