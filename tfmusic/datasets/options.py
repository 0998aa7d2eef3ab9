"""The keys of the section `data` that all loaders share; each loader adds its own in its file."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tfmusic.core.section import Fraction, PositiveOrZero, Section, Seed
from tfmusic.core.track import MIN_SHARE

Name = Annotated[str, Field(min_length=1)]


class DataSection(Section):
    """Where tracks and labels come from."""

    loader: str
    """Which loader reads the data."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Parts of the cross-validation; no artist or album is in two of them."""
    seed: Seed = 0
    """Seed of the assignment to folds."""
    on_error: Literal["stop", "skip"] = "stop"
    """For a track that cannot be used: stop the build, or leave it out and list it."""
    min_s: PositiveOrZero = 0.0
    """Shorter tracks cannot be used, s."""
    min_share: Fraction = MIN_SHARE
    """Share of the samples its headers state that a sound file must hold; 0 also takes Ogg without its last page."""

    @property
    def makes_folds(self) -> bool:
        """Whether tracks are assigned to folds even where the data has splits of its own."""
        return True

    @property
    def drops_leaks(self) -> bool:
        """Whether training tracks are left out whose artist is scored as well."""
        return False

    @property
    def label_kind(self) -> Literal["single", "multi"]:
        """Whether a track has one label, or several tags."""
        return "single"

    @property
    def n_labels(self) -> int | None:
        """How many labels the data usually has, or None where only the data can tell."""
        return None


class OfficialSection(DataSection):
    """Where tracks and labels come from; the data may have official splits."""

    splits: Literal["official", "folds"] = "official"
    """Keep the official splits, or assign all tracks to folds."""
    artist_leaks: Literal["report", "drop"] = "report"
    """Training tracks whose artist, or file, is also in a split that is scored: warn of them, or leave them out."""

    @property
    def makes_folds(self) -> bool:
        """Whether tracks are assigned to folds even where the data has splits of its own."""
        return self.splits == "folds"

    @property
    def drops_leaks(self) -> bool:
        """Whether training tracks are left out whose artist is scored as well."""
        return self.artist_leaks == "drop"


def loader_of(value: Any) -> Any:
    """Returns the loader that a section names; a section that names none is AI Rush's."""
    return value.get("loader", "airush") if isinstance(value, dict) else getattr(value, "loader", "airush")
