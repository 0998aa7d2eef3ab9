"""Small learnable data in the exact AI Rush layout, so that everything runs where no music is at hand.

A track is noise coloured by its artist. Each mood tag adds one narrow band that pulses, the station sets the tempo of
a broad beat, the genre tilts the spectrum. Lengths go from 2 s to 5 minutes. Artists of test tracks have no training
track. The same seed writes the same bytes.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.files import write_text

STATIONS = ("외로울때", "파티할때", "집중할때", "휴식할때")
GENRES = ("가요곡/엔카", "R&B", "레게", "J-ROCK")
_WHEN = ("비오는날", "맑은날", "추운날", "더운날", "흐린날", "새벽", "아침", "오후", "저녁", "한밤")
_WHAT = ("산책", "드라이브", "카페", "공부", "이별", "설렘/사랑", "운동&헬스", "여행", "휴식", "파티")
TAGS = tuple(f"{when} {what}" for what in _WHAT for when in _WHEN)

N_BINS = 128
SHORTEST_FRAMES, LONGEST_FRAMES = 62, 9375  # 2 s and 5 minutes at 32 ms a frame
MIN_TRACKS = 20
MARKER = "synthetic.json"  # says that a folder holds made-up music and may be replaced
TRACKS_PER_ARTIST = 3
TEST_SHARE = 0.2
_MAX_TAGS = 5
_LABEL_COLUMNS = {"q1": ("station_name", "station"), "q2": ("mood_tag", "tags"), "q3": ("genre", "genre")}


@dataclass(frozen=True)
class _Song:
    """One made-up track, before its sound."""

    track_id: int
    artist: int
    album: int
    station: str
    genre: str
    tags: tuple[str, ...]
    n_frames: int
    is_test: bool


def write(folder: Path, *, n_tracks: int, seed: int, on_track: Callable[[], None]) -> None:
    """Writes q1, q2, q3 and answers below `folder`; the same tracks serve all three questions.

    Args:
        folder: where to write; what an earlier call wrote there is replaced.
        n_tracks: training and test tracks together, at least 20.
        seed: decides everything.
        on_track: called after each track.
    """
    write_text(folder / MARKER, json.dumps({"n_tracks": n_tracks, "seed": seed}) + "\n")
    rng = np.random.default_rng(seed)
    songs = _songs(n_tracks, rng)
    for question in _LABEL_COLUMNS:
        for part in ("train", "test"):
            chosen = [song for song in songs if song.is_test == (part == "test")]
            _write_part(folder, question, part, chosen)
    for song in songs:
        _write_mel(folder, song, np.random.default_rng([seed, song.track_id]))
        on_track()


def _songs(n_tracks: int, rng: np.random.Generator) -> list[_Song]:
    n_artists = max(n_tracks // TRACKS_PER_ARTIST, 2)
    n_test_artists = max(round(n_artists * TEST_SHARE), 1)
    popularity = 1.0 / np.arange(3, 3 + len(TAGS))  # a few tags on many tracks, many on a few, as in life
    songs = []
    for i in range(n_tracks):
        artist = i % n_artists
        n_tags = int(rng.integers(1, _MAX_TAGS + 1))
        tags = rng.choice(len(TAGS), n_tags, replace=False, p=popularity / popularity.sum())
        songs.append(
            _Song(
                track_id=100 + 3 * i,  # ids have gaps
                artist=artist + 2,  # artist 1 is 'Various Artists'
                album=artist + 1,
                station=STATIONS[int(rng.integers(len(STATIONS)))],
                genre=GENRES[int(rng.integers(len(GENRES)))],
                tags=tuple(TAGS[tag] for tag in tags),
                n_frames=int(np.exp(rng.uniform(np.log(SHORTEST_FRAMES), np.log(LONGEST_FRAMES)))),
                is_test=artist < n_test_artists,
            )
        )
    return songs


# --- Sound -----------------------------------------------------------------------------------------------------


def make_mel(song: _Song, rng: np.random.Generator) -> np.ndarray:
    """Returns the linear-power spectrogram of a song, float32 [128, n_frames]."""
    frame = np.arange(song.n_frames)
    bins = np.arange(N_BINS)
    tilt_db = -0.25 * bins * (0.4 + 0.3 * GENRES.index(song.genre))
    colour_db = np.repeat(np.random.default_rng(song.artist).normal(0, 2, N_BINS // 8), 8)
    beat_frames = 10 + 8 * STATIONS.index(song.station)
    beat_db = 6.0 * (frame % beat_frames < 3)
    level_db = tilt_db[:, None] + colour_db[:, None] + beat_db[None, :] + rng.normal(0, 3, (N_BINS, song.n_frames))
    for name in song.tags:
        tag = TAGS.index(name)
        centre = 4 + 1.2 * tag
        pulse = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * (frame / (6 + 5 * (tag % 4)) + rng.uniform())))
        band = np.exp(-0.5 * ((bins - centre) / 0.6) ** 2)
        level_db += 22.0 * band[:, None] * pulse[None, :]
    return (10.0 ** (level_db / 10.0)).astype(np.float32)


def _write_mel(folder: Path, song: _Song, rng: np.random.Generator) -> None:
    part = "test" if song.is_test else "train"
    first, *others = (
        folder / question / part / f"{part}_data" / "mel_spectrogram" / f"{song.track_id}.npy"
        for question in _LABEL_COLUMNS
    )
    np.save(first, make_mel(song, rng)[None])
    for other in others:
        other.unlink(missing_ok=True)
        try:
            os.link(first, other)
        except OSError:  # a file system without hard links
            shutil.copy(first, other)


# --- Tables ----------------------------------------------------------------------------------------------------


def _write_part(folder: Path, question: str, part: str, songs: Sequence[_Song]) -> None:
    column, attribute = _LABEL_COLUMNS[question]
    data = folder / question / part / f"{part}_data"
    shutil.rmtree(data / "mel_spectrogram", ignore_errors=True)
    (data / "mel_spectrogram").mkdir(parents=True)
    labels = [list(value) if isinstance(value := getattr(song, attribute), tuple) else value for song in songs]
    listing = [{"track_index": song.track_id} for song in songs]
    if question == "q3":  # q3 keeps its metadata beside the label and has no meta folder in training
        listing = [row | _q3_metadata(song) for row, song in zip(listing, songs, strict=True)]
    else:
        _write_meta(data / "meta", songs)
    if part == "test":
        _dump(_columns(listing), data / "meta" / f"{question}_test.json")
        _dump(labels, folder / "answers" / f"{question}.json")
    else:
        rows = [row | {column: label} for row, label in zip(listing, labels, strict=True)]
        _dump(_columns(rows), folder / question / "train" / "train_label")


def _q3_metadata(song: _Song) -> dict[str, Any]:
    return {
        "track_title": f"노래 {song.track_id}",
        "artist_name_list": [f"가수 {song.artist}"],
        "album_name": f"앨범 {song.album}",
    }


def _write_meta(folder: Path, songs: Sequence[_Song]) -> None:
    _dump(_columns([_track_row(song) for song in songs]), folder / "track_meta.json")
    albums = {song.album: song for song in songs}
    artists = {song.artist: song for song in songs}
    _dump(_columns([_album_row(song) for song in albums.values()]), folder / "album_meta.json")
    _dump(_columns([_artist_row(song) for song in artists.values()]), folder / "artist_meta.json")
    _dump({}, folder / "lyric_meta.json")


def _track_row(song: _Song) -> dict[str, Any]:
    odd = song.track_id % 2 == 1
    return {
        "track_index": song.track_id,
        "album_index": song.album,
        "track_title": f"노래 {song.track_id}",
        "play_time": None if odd else _encode_play_time(round(song.n_frames * 0.032)),
        "artist_index_list": [song.artist],
        "artist_name_list": [f"가수 {song.artist}"],
        "is_oversea": "Y" if song.artist % 4 == 0 else "N",
        "album_title": None if odd else f"앨범 {song.album}",
        "genre": (None, "", "발라드", "발라드,  R&B/소울")[song.track_id % 4],
        "has_lyric": (1.0, 0.0, None)[song.track_id % 3],
        "has_tag": True,
    }


def _album_row(song: _Song) -> dict[str, Any]:
    return {
        "album_index": song.album,
        "album_title": f"앨범 {song.album}",
        "production_name": "기획사",
        "agency_name": ("배급사", "-", None)[song.album % 3],
        "release_ymd": ("2019-05-26", "2019-05", "2019", None)[song.album % 4],
        "is_live": "N",
        "is_oversea": "N",
        "artist_name_list": [f"가수 {song.artist}"],
    }


def _artist_row(song: _Song) -> dict[str, Any]:
    return {
        "artist_index": song.artist,
        "artist_name": f"가수 {song.artist}",
        "artist_type": "그룹",
        "is_oversea": "N",
        "country": "한국",
        "gender": ("남성", "여성", "불명")[song.artist % 3],
        "debut_ymd": ("1990-07-08", "19981101", "2001", None)[song.artist % 4],
    }


def _encode_play_time(seconds: int) -> int:
    """Returns MM:SS mis-read as HH:MM of 5 June 2020, in epoch milliseconds, as the real files have it."""
    midnight_s = 1591315200
    return (midnight_s + seconds // 60 * 3600 + seconds % 60 * 60) * 1000


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = rows[0] if rows else ()
    return {name: {str(i): row[name] for i, row in enumerate(rows)} for name in names}


def _dump(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
