"""Parsers fed with what nobody meant to write: `python -m tests.fuzz --executions 1000000 [TARGET ...]`.

Every target is a parser with some good inputs. Each execution spoils one of them and hands it over: an answer is fine,
an error that becomes one line with the file's name is fine, anything else, or five seconds of silence, is a find, which
is printed and kept as `find-TARGET-NUMBER` in the folder of `--keep`. `tests.guided` chooses inputs by what they reach.
"""

import argparse
import asyncio
import copy
import io
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tests import golden
from tfmusic.cli import one_line
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.files import check_files, digest_of
from tfmusic.core.rundir import RunDir
from tfmusic.errors import TfmusicError
from tfmusic.inference.model_folder import check_model
from tfmusic.integrity import _check_archive
from tfmusic.records.format import SegmentHeader, decode, encode_prefix
from tfmusic.records.manifest import Manifest

SILENCE_S = 5
MOST_MEMORY = 6 << 30  # 6 GiB
NASTY = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "..", "../../x", "/etc/passwd",
    "a\0b", "가" * 300, "=1+1", [], {}, [[]], [None], {"": None}, "nan", "1e400", "uint8", "O", "<f4", "single",
)  # fmt: skip
TOKENS = (
    b"", b"\0", b"\xff" * 8, b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 62), struct.pack("<q", -1), b"../",
    b"[" * 4000, b"{" * 300, b'"a":1,"a":2', b"&a [*a,*a]", b"!!python/object:os.system x", b"'descr': 'O'",
    b"'shape': (999999999,", b"999999999999999999999", b"-", b"NaN", b"\xed\xa0\x80", "가".encode(), b"\r\n",
    b"--xyz", b"|", b"\t", b'"', b"1e999",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser: what it takes when all is well, how it is called, and how a seed is spoiled."""

    seeds: list
    parse: Callable
    spoil: Callable
    share: float = 1.0


def spoil_bytes(seed, rng):
    """Returns bytes with some of the faults that files have, and some that people make."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1)
        what = rng.randrange(8)
        if what == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif what == 1 and data:
            data[place % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what == 2:
            del data[place:]
        elif what == 3:
            del data[place : place + rng.randrange(1, 17)]
        elif what == 4:
            data[place:place] = rng.choice(TOKENS)
        elif what == 5:
            token = rng.choice(TOKENS)
            data[place : place + len(token)] = token
        elif what == 6:
            data[place:place] = data[max(place - rng.randrange(1, 33), 0) : place] * rng.choice((1, 2, 100))
        else:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def spoil_value(seed, rng):
    """Returns a JSON value with other values at some places, or with keys gone, moved or new."""
    value = json.loads(json.dumps(seed))
    for _ in range(rng.choice((1, 1, 2, 4))):
        here = value
        while isinstance(here, dict | list) and here:
            key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            inner = here[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.75:
                here = inner
                continue
            what = rng.randrange(5)
            if what == 0:
                del here[key]
            elif what == 1 and isinstance(here, dict):
                here[str(rng.choice(NASTY))] = here.pop(key)
            else:
                here[key] = copy.deepcopy(rng.choice(NASTY))
            break
    return value


def spoil_json(seed, rng):
    """Returns the text of a spoiled value, or a spoiled text."""
    if rng.random() < 0.3:
        return spoil_bytes(json.dumps(seed).encode(), rng)
    return json.dumps(spoil_value(seed, rng), ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def of_file(folder, name, parse):
    """Returns what parses bytes through a file of a name."""

    def through(data):
        path = folder / name
        path.write_bytes(data)
        parse(path)

    return through


def npys():
    seeds = []
    for dtype in ("<f4", ">f8", "<f2"):
        for order in "CF":
            with io.BytesIO() as file:
                np.save(file, np.asarray(np.ones((1, 4, 9), dtype), order=order))
                seeds.append(file.getvalue())
    return seeds


def sounds(folder, forms):
    import soundfile

    seeds, music = [], np.random.default_rng(0).normal(0, 0.1, (3000, 1)).astype(np.float32)
    for form in forms:
        soundfile.write(folder / f"seed.{form}", music, 16000)
        seeds.append((folder / f"seed.{form}").read_bytes())
    return seeds


def read_sound(path):
    from tfmusic.features.audio import read_blocks

    for _ in read_blocks(path, 16000):
        pass


def npz(**arrays):
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        return file.getvalue()


def embeddings(folder):
    from tfmusic.features.embeddings import EmbeddingsWriter

    feature = Feature(name="embedding", source="x", n_bins=3, sample_rate_hz=16000, hop_length=512)
    with EmbeddingsWriter(folder / "e.npz", feature, ["b"]) as writer:
        writer.add("a", np.ones((2, 3)), np.zeros(2))
        writer.finish()
    return (folder / "e.npz").read_bytes()


def read_embeddings(path):
    from tfmusic.features import embeddings as module

    module._open_version.cache_clear()
    for name in module.read_index(path).track_ids[:3]:
        module.read_embedding(path, name, 3)


def manifest_reader(folder):
    """Returns what parses the value of a manifest whose own checksum is right, with all that depends on it."""

    def parse(value):
        value = {key: item for key, item in value.items() if key != "sha256"} if isinstance(value, dict) else value
        if isinstance(value, dict):
            value["sha256"] = digest_of(value)
        (folder / "manifest.json").write_text(json.dumps(value), encoding="utf-8", errors="replace")
        manifest = Manifest.read(folder)
        manifest.verify(list(manifest.splits))
        manifest.read_tokens()

    return parse


def shard_reader(folder, *, with_checksums):
    """Returns what parses a shard of golden records; with checksums put right, so that its content is looked at."""
    import shutil

    from tfmusic.records.reader import iterate_tracks
    from tfmusic.records.writer import length_header, masked_crc

    shutil.copytree(golden.GOLDEN, folder / "records", dirs_exist_ok=True)
    manifest = Manifest.read(folder / "records")
    path = manifest.shard_paths("fold0")[0]
    for other in manifest.shard_paths("fold0")[1:]:
        other.write_bytes(b"")

    def parse(data):
        if with_checksums:
            import google_crc32c

            data = length_header(len(data)) + data + struct.pack("<I", masked_crc(google_crc32c.value(data)))
        path.write_bytes(data)
        for _ in iterate_tracks(manifest, "fold0"):
            pass

    return parse, path.read_bytes()


def server():
    """Returns what hands the body of a form to the server; an answer of 500 or more is a find."""
    from tests.test_explain import listener
    from tfmusic.server.app import Limits, make_app

    predictor = listener()
    app = make_app(predictor, Limits(1, 8, 30.0, 1.0), hosts=["x"])

    async def ask(body, content_type):
        started, sent = [], [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return sent.pop(0) if sent else {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                started.append(message["status"])

        headers = [(b"host", b"x"), (b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/predict", "raw_path": b"/v1/predict", "query_string": b"", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "", "state": {},
        }  # fmt: skip
        await app(scope, receive, send)
        return started

    loop = asyncio.new_event_loop()

    def parse(data):
        head, _, body = data.partition(b"\n\n")
        status = loop.run_until_complete(ask(body, head.replace(b"\n", b" ").replace(b"\r", b" ")))
        if len(status) != 1 or status[0] >= 500:
            raise AssertionError(f"the server answered {status}")

    weakref.finalize(parse, loop.close)
    return parse


def forms():
    from tests.test_serve import form, loud

    seeds = []
    for files, fields in (([("a.npy", loud(0, 8, 20))], {}), ([("b.wav", b"RIFF")], {"metadata": '{"genres": ["a"]}'})):
        body, headers = form(files, **fields)
        seeds.append(headers["Content-Type"].encode() + b"\n\n" + body)
    return seeds


def keras_config():
    """The config of a model with one layer, as Keras 3 writes it."""
    tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None, 4], "dtype": "float32"}}
    tensor["config"]["keras_history"] = ["x", 0, 0]
    zeros = {"module": "keras.initializers", "class_name": "Zeros", "config": {}, "registered_name": None}
    dense = {"name": "dense", "units": 3, "activation": "relu", "kernel_initializer": zeros, "dtype": "float32"}
    layers = [
        {"module": "keras.layers", "class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 4]},
         "registered_name": None, "name": "x", "inbound_nodes": []},
        {"module": "keras.layers", "class_name": "Dense", "config": dense, "registered_name": None, "name": "dense",
         "build_config": {"input_shape": [None, 4]}, "inbound_nodes": [{"args": [tensor], "kwargs": {}}]},
    ]  # fmt: skip
    config = {"name": "m", "layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["dense", 0, 0]]}
    module = "keras.src.models.functional"
    return {"module": module, "class_name": "Functional", "config": config, "registered_name": "Functional"}


def targets(folder):
    """Returns all targets by name; they use a folder for their files."""
    from tfmusic.config.loading import find_config, load_config
    from tfmusic.datasets import metadata, table
    from tfmusic.features.npy import find_feature, read_mel
    from tfmusic.scoring.track_scorer import TrackScorer, save_scorers

    contract = json.loads((golden.GOLDEN / "manifest.json").read_text())["contract"]
    header = SegmentHeader("가 7", 3, 0, 6, (0, 2), (5,))
    record = encode_prefix(header, 24) + bytes(range(24))
    scorer = TrackScorer(kind=contract["kind"], track_shifts={"mean": 0.5})
    save_scorers({contract["task"]: scorer}, folder / "calibration")
    checksums = {"version": 1, "files": {"calibration": {"bytes": 3, "sha256": "0" * 64}}}
    manifest = json.loads((golden.GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    rows = [
        b"path,labels,split,artist\na/1.mp3,jazz|calm,train,Ann\nb/2.npy,rock,test,Bob|Cid\n",
        "path,labels\na.wav,가\n".encode(),
    ]
    label = {"track_index": {"0": 1, "1": 7}, "mood_tag": {"0": ["a"], "1": ["b", "c"]}}
    for name in ("manifest", "checksums", "raw", "crc"):
        (folder / name).mkdir()
    whole, shard = shard_reader(folder / "raw", with_checksums=False)
    framed, _ = shard_reader(folder / "crc", with_checksums=True)
    options = table.Options(loader="table")
    configs = [find_config(name).read_bytes() for name in ("q2", "folder", "gtzan")]

    def read_checksums(data):
        try:
            value = json.loads(data)
            data = json.dumps(value | {"sha256": digest_of({k: v for k, v in value.items() if k != "sha256"})}).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
        (folder / "checksums" / "checksums.json").write_bytes(data)
        check_files(folder / "checksums")

    def read_keras(data):
        """A .keras file whose config is the data, with the weights of a layer of 3 units."""
        with zipfile.ZipFile(folder / "x.keras", "w") as archive:
            archive.writestr("config.json", data)
            archive.writestr("model.weights.h5", weights.getvalue())
        _check_archive(folder / "x.keras")

    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"] = np.zeros((4, 3), "f4")
    model = keras_config()
    # ModelProto: ir_version, and a graph with a node (op_type, domain) and a tensor (dims, name, raw_data).
    node, tensor = b"\x22\x04Relu\x3a\x00", b"\x08\x01\x42\x01w\x4a\x04\0\0\0\0"
    graph = b"\x0a" + bytes([len(node)]) + node + b"\x2a" + bytes([len(tensor)]) + tensor
    onnx = b"\x08\x0a\x3a" + bytes([len(graph)]) + graph
    members = {"members": [{"run": "../a", "weight": 0.5, "sha256": "0" * 64}, {"run": "../b", "weight": 0.5}]}

    return {
        "keras": Target([model], read_keras, spoil_json, 2),
        "onnx": Target([onnx], of_file(folder, "model.onnx", lambda path: check_model(path.parent)), spoil_bytes, 4),
        "ensemble": Target(
            [members], of_file(folder, "ensemble.json", lambda path: RunDir(path.parent).members()), spoil_json, 3
        ),
        "card": Target(
            [{"task": "t", "labels": ["가"], "card_version": 1}],
            of_file(folder, "model_card.json", lambda path: RunDir(folder).read_json(path)), spoil_json, 3,
        ),
        "npy": Target(npys(), of_file(folder, "x.npy", lambda path: read_mel(path, 4)), spoil_bytes, 6),
        "example": Target([record], decode, spoil_bytes, 12),
        "tfrecord": Target([shard], whole, spoil_bytes, 4),
        "segments": Target([record], framed, spoil_bytes, 4),
        "manifest": Target([manifest], manifest_reader(folder / "manifest"), spoil_value, 2),
        "contract": Target([contract], of_file(folder, "c.json", Contract.load), spoil_json, 6),
        "calibration": Target(
            [json.loads((folder / "calibration").read_text())], of_file(
                folder, "k.json", lambda path: TrackScorer.load(path, Contract.from_dict(contract))
            ), spoil_json, 4,
        ),
        "checksums": Target([checksums], read_checksums, spoil_json, 3),
        "feature": Target(
            [{"format": "tfmusic features 1", "feature": contract["feature"], "made_by": {}}],
            of_file(folder, "feature.json", lambda path: find_feature(path.parent)), spoil_json, 3,
        ),
        "config": Target(configs, of_file(folder, "x.yaml", load_config), spoil_bytes, 0.15),
        "table": Target(
            rows,
            of_file(folder, "tracks.csv", lambda path: table.load(path.parent, options, task="t")),
            spoil_bytes,
            4,
        ),
        "labels": Target(
            [label],
            of_file(folder, "train_label", lambda path: metadata.read_columns(path, ("track_index",))),
            spoil_json, 4,
        ),
        "embeddings": Target([embeddings(folder)], of_file(folder, "e.npz", read_embeddings), spoil_bytes, 1),
        "wav": Target(sounds(folder, ["wav", "aiff", "au"]), of_file(folder, "x.wav", read_sound), spoil_bytes, 2),
        "flac": Target(sounds(folder, ["flac"]), of_file(folder, "x.flac", read_sound), spoil_bytes, 1),
        "ogg": Target(sounds(folder, ["ogg"]), of_file(folder, "x.ogg", read_sound), spoil_bytes, 0.3),
        "mp3": Target(sounds(folder, ["mp3"]), of_file(folder, "x.mp3", read_sound), spoil_bytes, 0.5),
        "form": Target(forms(), server(), spoil_bytes, 0.7),
    }  # fmt: skip


class SilenceError(Exception):
    """A parser has said nothing for too long."""


def silent(number, frame):
    raise SilenceError(f"no answer within {SILENCE_S} s")


def check(parse, spoiled):
    """Hands a spoiled input over; raises what must not come out."""
    signal.setitimer(signal.ITIMER_REAL, SILENCE_S)
    try:
        parse(spoiled)
    except TfmusicError as error:
        assert one_line(str(error)), "an empty line"
    except OSError as error:
        if not error.filename:  # else the command line makes a line of it that names the file
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name, target, executions, seed, on_find):
    """Returns how many executions of a target found something."""
    rng, finds = random.Random(f"{seed}/{name}"), 0
    for _ in range(executions):
        spoiled = target.spoil(rng.choice(target.seeds), rng)
        try:
            check(target.parse, spoiled)
        except (Exception, SilenceError) as error:
            finds += 1
            on_find(name, finds, spoiled, error)
            if finds >= 20:
                break
    return finds


def run(arguments):
    """Fuzzes the targets named; exits 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=[])
    parser.add_argument("--executions", type=int, default=100_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what was found")
    args = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.signal(signal.SIGALRM, silent)
    found = 0

    def on_find(name, number, spoiled, error):
        sys.stdout.write(f"{name}: {type(error).__name__}: {str(error)[:200]} on {str(spoiled)[:300]}\n")
        if args.keep:
            args.keep.mkdir(exist_ok=True)
            data = spoiled if isinstance(spoiled, bytes) else json.dumps(spoiled).encode()
            (args.keep / f"find-{name}-{zlib.crc32(data):08x}").write_bytes(data)

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        known = targets(Path(folder))
        chosen = {name: known[name] for name in args.targets or known}
        total = sum(target.share for target in chosen.values())
        for name, target in chosen.items():
            executions, begin = round(args.executions * target.share / total), time.monotonic()
            finds = fuzz(name, target, executions, args.seed, on_find)
            seconds = time.monotonic() - begin
            sys.stdout.write(f"{name}: {executions:,} executions, {finds} finds, {seconds:.0f} s\n")
            sys.stdout.flush()
            found += finds
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
