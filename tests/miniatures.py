"""Small data in the true layout of every data set, with made-up sound that tells the classes apart."""

import csv
import json
from pathlib import Path

import numpy as np

GTZAN_GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
FMA_TOPS = {"Rock": 12, "Jazz": 4, "Folk": 17, "Blues": 3}  # of the tracks here; genres.csv has all sixteen
FMA_OTHER_TOPS = {
    "Hip-Hop": 21, "Pop": 10, "Electronic": 15, "Experimental": 38, "Instrumental": 1235, "International": 2,
    "Classical": 5, "Old-Time / Historic": 8, "Country": 9, "Easy Listening": 13, "Soul-RnB": 14, "Spoken": 20,
}  # fmt: skip
FMA_CHILDREN = {"Punk": (25, 12), "Hardcore": (31, 25), "Bop": (40, 4)}  # id and parent
MOODS = ("happy", "dark", "film", "epic")
SAMPLE_RATE_HZ = 16000


def write_sound(path, kind, rng, seconds=3.0):
    """Writes audio, or a spectrogram where the path ends in .npy: a pulsing tone that tells the kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        mel = rng.random((128, int(seconds * 31.25)), np.float32) * 1e-4
        mel[10 + 9 * kind : 14 + 9 * kind, :: 2 + kind % 3] += 1.0
        np.save(path, mel[None])
        return
    import soundfile

    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * 200 * 1.35**kind * time) * (np.sin(2 * np.pi * (1 + kind % 3) * time) > 0)
    soundfile.write(path, (tone + rng.normal(0, 0.01, len(time))).astype(np.float32), SAMPLE_RATE_HZ)


def write_gtzan(folder, suffix=".wav", clips=4, lists=("train", "valid", "test"), genres=GTZAN_GENRES, seconds=3.0):
    """Writes `clips` clips a genre: the last is for test, the one before for validation where that is listed."""
    rng, names = np.random.default_rng(0), {name: [] for name in lists}
    for kind, genre in enumerate(genres):
        for n in range(clips):
            name = f"{genre}/{genre}.{n:05d}"
            write_sound(folder / "wav" / f"{name}{suffix}", kind, rng, seconds)
            part = "test" if n == clips - 1 else "valid" if n == clips - 2 and "valid" in names else "train"
            if part in names:
                names[part].append(f"{name}.wav")
    for part, listed in names.items():
        (folder / "split").mkdir(exist_ok=True)
        (folder / "split" / f"{part}.txt").write_text("".join(f"{name}\n" for name in listed))


def write_fma(folder, suffix=".mp3", tracks=24, subset="small", seconds=3.0, leak=True):
    """Writes tracks of four top genres; with `leak` one artist stands in training and test."""
    rng = np.random.default_rng(0)
    (folder / "fma_metadata").mkdir(parents=True)
    columns = [
        ("album", "id"), ("album", "title"), ("artist", "bio"), ("artist", "id"), ("artist", "name"), ("set", "split"),
        ("set", "subset"), ("track", "genre_top"), ("track", "genres"), ("track", "genres_all"), ("track", "title"),
    ]  # fmt: skip
    rows = []
    for n in range(tracks):
        top = list(FMA_TOPS)[n % 4]
        children = {"Rock": ["Punk", "Hardcore"], "Jazz": ["Bop"]}.get(top, [])[: n % 3]
        ids = [FMA_CHILDREN[name][0] for name in children] or [FMA_TOPS[top]]
        split = ("training", "training", "training", "training", "validation", "test")[n // 4 % 6]
        artist = 7 if leak and n in (0, 20) else 100 + n // 4 * 4 + n % 4
        track_id = 2 + 70 * n
        rows.append([
            track_id, 500 + n, f"Album {n}", 'a "long", bio\nof two lines', artist, f"Artist {artist}", split, subset,
            top, json.dumps(ids), json.dumps(sorted({*ids, FMA_TOPS[top]})), f"Song {n}",
        ])  # fmt: skip
        name = f"{track_id:06d}"
        write_sound(folder / f"fma_{subset}" / name[:3] / f"{name}{suffix}", n % 4, rng, seconds)
    with (folder / "fma_metadata" / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows([["", *(part for part, _ in columns)], ["", *(name for _, name in columns)]])
        table.writerow(["track_id", *[""] * len(columns)])
        table.writerows(rows)
    with (folder / "fma_metadata" / "genres.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["genre_id", "#tracks", "parent", "title", "top_level"])
        table.writerows([i, 9, 0, title, i] for title, i in (FMA_TOPS | FMA_OTHER_TOPS).items())
        table.writerows([i, 9, parent, title, 12] for title, (i, parent) in FMA_CHILDREN.items())


def write_jamendo(folder, suffix=".mp3", tracks=18, seconds=3.0, splits=(0, 1, 2, 3, 4)):
    """Writes tracks with one to three moods; in split k the parts are turned by k, so that the splits differ."""
    rng, header = np.random.default_rng(0), "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
    lines = []
    for n in range(tracks):
        path = f"{n % 100:02d}/{900 + n}"
        tags = sorted({MOODS[n % 4], MOODS[(n * n) % 4], MOODS[0 if n % 5 == 0 else n % 4]})
        cells = [f"track_{900 + n:07d}", f"artist_{n // 2:06d}", f"album_{n:06d}", f"{path}.mp3", f"{seconds}"]
        lines.append("\t".join([*cells, *(f"mood/theme---{tag}" for tag in tags)]) + "\n")
        write_sound(folder / "audio" / f"{path}{suffix}", n % 4, rng, seconds)
    (folder / "data").mkdir()
    (folder / "data" / "autotagging_moodtheme.tsv").write_text(header + "".join(lines))
    for k in splits:
        place = folder / "data" / "splits" / f"split-{k}"
        place.mkdir(parents=True)
        parts = {"train": [], "validation": [], "test": []}
        for n, line in enumerate(lines):
            which = (n // 2 + k) % 6  # an artist has two tracks
            parts["test" if which == 5 else "validation" if which == 4 else "train"].append(line)
        for part, some in parts.items():
            (place / f"autotagging_moodtheme-{part}.tsv").write_text(header + "".join(some))


def write_folder(folder, suffix=".wav", tracks=4, splits=("train", "valid", "test"), seconds=3.0):
    """Writes two classes, one of them with a name that is no plain id; in three splits, or in none."""
    rng = np.random.default_rng(0)
    for part in splits or ("",):
        for kind, name in enumerate(("rock", "재즈 & 소울")):
            for n in range(tracks if part in ("train", "") else 2):
                write_sound(folder / part / name / f"{part or 'all'}{n}{suffix}", kind, rng, seconds)


def write_table(folder, suffix=".wav", tracks=12, seconds=3.0):
    """Writes tracks of three labels with splits, artists and albums."""
    rng = np.random.default_rng(0)
    with_header = [("path", "labels", "split", "artist", "album")]
    for n in range(tracks):
        path = f"music/{'abc'[n % 3]}/{n}{suffix}"
        write_sound(folder / path, n % 3, rng, seconds)
        split = "train" if n < tracks * 2 // 3 else "valid" if n < tracks * 5 // 6 else "test"
        labels = "abc"[n % 3] if n % 2 else f"{'abc'[n % 3]}|{'abc'[(n + 1) % 3]}"
        with_header.append((path, labels, split, f"artist {n}|guest {n}", f"album {n}"))
    with (folder / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(with_header)


WRITERS = {
    "gtzan": write_gtzan, "fma": write_fma, "jamendo": write_jamendo, "folder": write_folder, "table": write_table,
}  # fmt: skip


def audio_files(folder):
    """Returns all made-up sound files below a folder, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix in (".npy", ".wav", ".mp3"))
