"""The section of a config that says which tracks there are.

`data` is one class a loader, chosen by `data.loader`. The keys of `DataSection` are every loader's; the others are
given to the loader as they stand.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tfmusic.core.section import CountOrZero, PositiveOrZero, Section, Seed

Name = Annotated[str, Field(min_length=1)]
Question = Literal["q1", "q2", "q3"]


class DataSection(Section):
    """Where the labels come from, how tracks are dealt into folds, and what becomes of those that cannot be used.

    A track shorter than `min_s` seconds counts as one that cannot be used.
    """

    loader: str
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    seed: Seed = 0
    on_error: Literal["stop", "skip"] = "stop"
    min_s: PositiveOrZero = 0.0

    @property
    def deals_folds(self) -> bool:
        """Whether folds are dealt even where the data has splits of its own."""
        return True

    @property
    def drops_leaks(self) -> bool:
        """Whether training tracks go whose artist is scored as well."""
        return False

    @property
    def n_labels(self) -> int | None:
        """How many labels the data has as a rule, or None where only the data can tell."""
        return None

    def options(self) -> dict[str, Any]:
        """Returns the keys that are the loader's own."""
        common = OfficialSection.model_fields
        return {name: getattr(self, name) for name in type(self).model_fields if name not in common}


class OfficialSection(DataSection):
    """Data that may come with splits of its own, which are kept as they are unless `splits: folds` asks for folds.

    Where an artist stands in two of them, `artist_leaks: drop` leaves out the tracks that would train on what is
    scored; `report` only says so.
    """

    splits: Literal["official", "folds"] = "official"
    artist_leaks: Literal["report", "drop"] = "report"

    @property
    def deals_folds(self) -> bool:
        """Whether folds are dealt even where the data has splits of its own."""
        return self.splits == "folds"

    @property
    def drops_leaks(self) -> bool:
        """Whether training tracks go whose artist is scored as well."""
        return self.artist_leaks == "drop"


class AirushData(DataSection):
    """AI Rush: a question, or one for every task."""

    loader: Literal["airush"] = "airush"
    question: Question | list[Question]

    @property
    def n_labels(self) -> int:
        """Labels of all questions together."""
        asked = self.question if isinstance(self.question, list) else [self.question]
        return sum({"q1": 4, "q2": 100, "q3": 4}[question] for question in asked)


class GtzanData(OfficialSection):
    """GTZAN: all ten genres or eight of them, and the folder of the lists that say which clip is in which split."""

    loader: Literal["gtzan"]
    n_classes: Literal[8, 10] = 10
    lists: Name = "split"
    validation_per_class: CountOrZero = 5

    @property
    def n_labels(self) -> int:
        """Number of genres."""
        return self.n_classes

    def options(self) -> dict[str, Any]:
        """Returns the keys that are the loader's own, and the seed that chooses validation clips."""
        return super().options() | {"seed": self.seed}


class FmaData(OfficialSection):
    """Free Music Archive: which subset, which genres of a track are its labels, and genres to be one class."""

    loader: Literal["fma"]
    subset: Literal["small", "medium", "large", "full"] = "small"
    genres: Literal["top", "top_first", "all"] = "top"
    merge: dict[str, Annotated[list[Name], Field(min_length=1)]] = Field(default_factory=dict)

    @property
    def n_labels(self) -> int:
        """Number of genres before any are merged."""
        tops = 8 if self.subset == "small" else 16
        return (tops if self.genres == "top" else 163) - sum(len(old) - 1 for old in self.merge.values())

    @model_validator(mode="after")
    def _one_class_a_genre(self) -> "FmaData":
        old = [genre for some in self.merge.values() for genre in some]
        if len(set(old)) != len(old):
            repeated = sorted({genre for genre in old if old.count(genre) > 1})
            raise ValueError(f"data.merge must name every genre once. Received twice: {', '.join(repeated)}")
        return self


class JamendoData(OfficialSection):
    """MTG-Jamendo: which set of tags, which of the five official splits, and the folder of the audio."""

    loader: Literal["jamendo"]
    subset: Literal["moodtheme", "genre", "instrument", "top50tags", "all"] = "moodtheme"
    split: Annotated[int, Field(ge=0, le=4)] = 0
    audio: Name = "audio"

    @property
    def n_labels(self) -> int:
        """Number of tags of split 0."""
        return {"moodtheme": 56, "genre": 87, "instrument": 40, "top50tags": 50, "all": 183}[self.subset]


class FolderData(OfficialSection):
    """A folder a class."""

    loader: Literal["folder"]


class TableData(OfficialSection):
    """A table with a row a track."""

    loader: Literal["table"]
    table: Name = "tracks.csv"
    kind: Literal["single", "multi"] = "single"


LOADER_SECTIONS: dict[str, type[DataSection]] = {
    "airush": AirushData,
    "gtzan": GtzanData,
    "fma": FmaData,
    "jamendo": JamendoData,
    "folder": FolderData,
    "table": TableData,
}


def _loader_of(value: Any) -> Any:
    """Returns the loader that a section names; one that names none is AI Rush's."""
    return value.get("loader", "airush") if isinstance(value, dict) else getattr(value, "loader", "airush")


AnyData = Annotated[
    Annotated[AirushData, Tag("airush")]
    | Annotated[GtzanData, Tag("gtzan")]
    | Annotated[FmaData, Tag("fma")]
    | Annotated[JamendoData, Tag("jamendo")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[TableData, Tag("table")],
    Discriminator(_loader_of),
]
