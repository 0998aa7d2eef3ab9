"""Parsers fed with what nobody meant to write: some of what `tests.fuzz` does at length, and what it has found."""

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import check, manifest_reader, spoil_bytes, spoil_value, targets
from tfmusic.cli import main, one_line
from tfmusic.config.loading import config_from_text
from tfmusic.core.contract import Contract
from tfmusic.core.files import CHECKSUMS_VERSION, check_files, digest_of, parse_json, read_json_file
from tfmusic.datasets.files import below, read_table
from tfmusic.errors import ConfigError, DataError, RecordsError, RunError
from tfmusic.records.format import SegmentHeader, decode, encode_prefix
from tfmusic.records.manifest import Manifest
from tfmusic.scoring.track_scorer import TrackScorer, save_scorers

ROOT = Path(__file__).parents[1]
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NAMES = (
    "npy", "example", "tfrecord", "segments", "manifest", "contract", "calibration", "checksums", "feature", "config",
    "table", "labels", "embeddings", "wav", "flac", "ogg", "mp3", "form", "keras", "onnx", "ensemble", "card",
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_spoiled_input(known, name):
    """Good input with some faults: answered, or refused in a line that names it."""
    assert set(known) == set(NAMES)
    target, rng = known[name], random.Random(name)
    for _ in range(20 if name == "config" else 100):
        check(target.parse, target.spoil(rng.choice(target.seeds), rng))


@pytest.mark.torture
@pytest.mark.parametrize("name", NAMES)
def test_a_million_spoiled_inputs(name, tmp_path, record_property):
    """The same a million times over all parsers; what is found is kept, and printed with its input."""
    shares = {one: target.share for one, target in targets(tmp_path).items()}
    executions = math.ceil(1_000_000 * shares[name] / sum(shares.values()))
    record_property("trials", executions)
    words = ["--executions", str(executions), "--keep", str(tmp_path / "finds"), name]
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert done.returncode == 0, f"kept in {tmp_path / 'finds'}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("manifest", "config")])
def test_any_bytes(known, name):
    """Bytes that were never such a file."""

    @QUICK
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode(errors="replace"))))
    def parse(data):
        check(known[name].parse, data)

    parse()


@QUICK
@given(
    st.text(st.characters(codec="utf-8"), max_size=80),
    st.lists(st.integers(0, 2**63 - 1), max_size=5),
    st.binary(max_size=99),
)
def test_examples_come_back(track_id, label, cells):
    """Whatever is written as an Example is read as it was."""
    header = SegmentHeader(track_id, len(label), 7, 5, tuple(label))
    again, read = decode(encode_prefix(header, len(cells)) + cells)
    assert (again, bytes(read)) == (header, cells)


@QUICK
@given(st.text(max_size=200))
def test_configs_of_any_text(text):
    """A config is read or refused with its name, whatever it says."""
    try:
        config_from_text(text, "x.yaml")
    except ConfigError as error:
        assert "x.yaml" in str(error)


def test_mutations_do_what_they_say():
    """The fuzzer spoils: bytes differ as a rule, and values lose, gain and change keys."""
    rng = random.Random(0)
    assert len({spoil_bytes(b"abcdef" * 9, rng) for _ in range(200)}) > 150
    assert len({json.dumps(spoil_value({"a": {"b": [1, 2]}, "c": 3}, rng)) for _ in range(200)}) > 30


# --- What was found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["window_shift", "mean", "min_tags"])
def test_calibrations_are_finite(tmp_path, value, key):
    """A shift that is not finite would make every score NaN; so would a limit."""
    from tests.golden import GOLDEN

    path = tmp_path / "calibration.json"
    contract = Contract.from_dict(json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["contract"])
    save_scorers({contract.task: TrackScorer(kind=contract.kind, track_shifts={"mean": 0.0})}, path)
    text = path.read_text()
    spoiled = re.sub(rf'"{key}": [0.]+', f'"{key}": {value}', text)
    assert spoiled != text
    path.write_text(spoiled)
    with pytest.raises(RunError, match=rf"calibration\.json: .*{key}"):
        TrackScorer.load(path, contract)


@pytest.mark.parametrize("size", [float("inf"), "x", None, [], -1])
def test_checksums_list_sizes(tmp_path, size):
    """A list of checksums whose own checksum is right and whose sizes are none."""
    (tmp_path / "a").write_bytes(b"abc")
    body = {"version": CHECKSUMS_VERSION, "files": {"a": {"bytes": size, "sha256": "0"}}}
    (tmp_path / "checksums.json").write_text(json.dumps(body | {"sha256": digest_of(body)}))
    with pytest.raises(RunError, match=str(tmp_path)):
        check_files(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', "", "{"])
def test_checksums_are_a_mapping(tmp_path, text):
    """Any other value of JSON is refused in a line that names the file."""
    (tmp_path / "checksums.json").write_text(text)
    with pytest.raises(RunError, match=r"checksums\.json: must be the checksums"):
        check_files(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/../../a", "a\0b"])
def test_checksums_stay_inside(tmp_path, name):
    """A list of checksums names no file outside its folder."""
    body = {"version": CHECKSUMS_VERSION, "files": {name: {"bytes": 1, "sha256": "0"}}}
    (tmp_path / "checksums.json").write_text(json.dumps(body | {"sha256": digest_of(body)}))
    with pytest.raises(RunError, match="only files of its own folder"):
        check_files(tmp_path)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "..", "", "a\0b", "a\\b", 5, None])
def test_shards_stay_inside(tmp_path, file):
    """A manifest that someone has made, with the right checksum, names no file outside its folder."""
    from tests.golden import GOLDEN

    value = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    value["splits"]["fold0"]["shards"][0]["file"] = file
    with pytest.raises(RecordsError, match=r"manifest\.json: must be a manifest"):
        manifest_reader(tmp_path)(value)
    assert Manifest.read(GOLDEN).splits


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "O"), ("frames", 10**15), ("frames", 0), ("frames", True), ("labels", []), ("labels", ["a", "a"]),
        ("labels", ["a\n"]), ("kind", "x"), ("scale", {"name": "db", "low": 1.0, "high": 1.0}),
        ("scale", {"name": "db", "low": float("nan"), "high": 1.0}), ("scale", {"name": "x", "low": 0, "high": 1}),
        ("feature", {"name": "mel"}), ("feature", {"name": "mel", "sample_rate_hz": 1, "hop_length": 1, "n_bins": 1}),
        ("feature", {"name": "mel", "sample_rate_hz": 1, "hop_length": 1, "n_bins": 1 << 16, "n_fft": 1 << 29}),
        ("feature", {"name": "eval", "sample_rate_hz": 1, "hop_length": 1, "n_bins": 1, "n_fft": 2}),
    ],
)  # fmt: skip
def test_contracts_of_no_sense(tmp_path, key, value):
    """A contract that could not be kept is refused when it is read, not in the middle of a track."""
    from tests.golden import GOLDEN

    fields = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["contract"]
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(fields | {key: value}))
    with pytest.raises(RunError, match=r"contract\.json: must be the contract"):
        Contract.load(path)
    path.write_text(json.dumps(fields))
    assert Contract.load(path)


@pytest.mark.parametrize("name", ["a/" + "b" * 256, "가" * 90 + ".mp3"])
def test_names_too_long_for_a_disk(tmp_path, name):
    """A table may name files that no disk can hold; the row is named."""
    with pytest.raises(DataError, match="must have at most 255 bytes"):
        below(tmp_path, name, "tracks.csv: 1")


def test_messages_are_one_line(tmp_path, capsys):
    """However long what an untrusted file has put into it."""
    (tmp_path / "tracks.csv").write_text("a," * 100_000 + "\n")
    with pytest.raises(DataError, match="must be a table"):
        read_table(tmp_path / "tracks.csv", ("path",))
    config = ["build-records", "q2", "data.loader=table", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(config) == 2
    error = capsys.readouterr().err
    assert len(error) < 4000
    assert len(error.splitlines()) == 1
    assert one_line("a\nb\r\nc") == "a b c"


def test_json_of_strangers(tmp_path):
    """Depth, keys that stand twice, size, and what is no file."""
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"a": 1, "b": {"c": 1, "c": 2}}', "9" * 5000):
        with pytest.raises(ValueError, match=r"nested|twice|digits"):
            parse_json(text)
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(ValueError, match="at most 256 MiB"):
        read_json_file(tmp_path / "big.json")


def test_duplicate_keys_of_labels(music, tmp_path, capsys):
    """A track that has two labels in one table is not silently given the last."""
    import shutil

    shutil.copytree(music / "q2", tmp_path / "q2")
    path = tmp_path / "q2" / "train" / "train_label"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"track_index": {', '"track_index": {"0": 99999, ', 1), encoding="utf-8")
    assert main(["build-records", "q2", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "key '0' appears twice" in capsys.readouterr().err


@pytest.mark.parametrize("start", [2**40, 2**62])
def test_segments_far_away_take_no_memory(tmp_path, start):
    """A segment that claims to begin after 10^12 frames, with right checksums, is refused."""
    from tests.fuzz import shard_reader

    parse, _ = shard_reader(tmp_path, with_checksums=True)
    parse(encode_prefix(SegmentHeader("a", 0, 0, 6, (0,)), 24) + bytes(24))
    for header in (
        SegmentHeader("a", 0, start, 6, (0,)),
        SegmentHeader("a", 0, 0, 7, (0,)),
        SegmentHeader("a", 0, 0, 6, (3,)),
    ):
        with pytest.raises(RecordsError, match="track a"):
            parse(encode_prefix(header, 24) + bytes(24))
    with pytest.raises(RecordsError, match="build again"):
        parse(encode_prefix(SegmentHeader("a", 0, 60_000_000, 6, (0,)), 24) + bytes(24))


def test_npy_that_claims_to_be_huge(tmp_path):
    """A header of 10^15 bytes of cells, and one that is itself 2^31 bytes long."""
    from tfmusic.features.npy import read_mel

    np.save(tmp_path / "x.npy", np.ones((1, 4, 9), np.float32))
    raw = (tmp_path / "x.npy").read_bytes()
    claims = raw.replace(b"(1, 4, 9), }" + b" " * 14, b"(1, 4, 250000000000000), }")
    assert claims != raw
    for spoiled in (claims, b"\x93NUMPY\x02\x00" + (2**31 - 1).to_bytes(4, "little") + raw[10:]):
        (tmp_path / "x.npy").write_bytes(spoiled)
        with pytest.raises(DataError, match=r"x\.npy: must be a complete"):
            read_mel(tmp_path / "x.npy", 4)


def test_structured_cells(tmp_path):
    """Records with named fields are no spectrogram."""
    from tfmusic.features.npy import read_mel

    np.save(tmp_path / "x.npy", np.zeros((1, 4, 9), [("a", "f4"), ("b", "i4")]))
    with pytest.raises(DataError, match="must be real floats"):
        read_mel(tmp_path / "x.npy", 4)
