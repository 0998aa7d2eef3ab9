"""Records on an object store: the bytes of a local build, the manifest last, a verified copy to train from."""

import importlib.util
import json
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import fit_small
from tests.disks import small_disk
from tfmusic.cli import main
from tfmusic.core.files import digest_of
from tfmusic.errors import RecordsError, UsageError
from tfmusic.records.build.places import OnStore
from tfmusic.records.manifest import Manifest
from tfmusic.records.store import Store, fetch

fsspec = pytest.importorskip("fsspec")
BUILD = ("build-records", "q2", "--workers", "1")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A store in the memory of this process, empty; copies of it go to a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    return files


def build(music, url, *flags):
    return main([*BUILD, "--data", str(music), "--out", url, *flags])


def contents(files, folder):
    return {name.rsplit("/", 1)[-1]: files.cat_file(name) for name in files.ls(folder, detail=False)}


def test_a_store_holds_the_bytes_of_a_folder(music, records, bucket, monkeypatch):
    """Every file is the local build's; the manifest is written after all others, and no note is left."""
    order = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, path: (order.append(path.name), put(self, path)))
    assert build(music, "memory://b/q2") == 0
    assert contents(bucket, "/b/q2") == {path.name: path.read_bytes() for path in records.iterdir()}
    assert order[-1] == "manifest.json"


def test_existing_records_are_kept_unless_told(music, bucket, capsys):
    """A second build needs --overwrite, which leaves nothing of the first; a place of other files is refused."""
    assert build(music, "memory://b/q2", "--num-shards", "2") == 0
    before = contents(bucket, "/b/q2")
    assert build(music, "memory://b/q2") == 2
    assert "memory://b/q2: exists already. Pass --overwrite" in capsys.readouterr().err
    assert contents(bucket, "/b/q2") == before
    assert build(music, "memory://b/q2", "--overwrite") == 0
    listed = {shard.file for split in Manifest.read(fetch("memory://b/q2")).splits.values() for shard in split.shards}
    assert {name for name in contents(bucket, "/b/q2") if ".tfrecord" in name} == listed
    bucket.pipe_file("/b/photos/1.jpg", b"x")
    assert build(music, "memory://b/photos", "--overwrite") == 2
    assert "Received: 1 other files, such as 1.jpg" in capsys.readouterr().err
    assert contents(bucket, "/b/photos") == {"1.jpg": b"x"}


def test_an_interrupted_build_goes_on(music, records, bucket, monkeypatch, capsys):
    """What has its note is not written again; the result is that of a build that was not interrupted."""
    written, write = [], OnStore.write

    def write_three(self, spec):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(spec.path.name)
        return write(self, spec)

    monkeypatch.setattr(OnStore, "write", write_three)
    assert build(music, "memory://b/q2") == 130
    assert "manifest.json" not in contents(bucket, "/b/q2")
    with pytest.raises(RecordsError, match=r"no manifest\.json"):
        fetch("memory://b/q2")
    monkeypatch.setattr(OnStore, "write", write)
    assert build(music, "memory://b/q2") == 0
    assert "went on from 3 finished shards" in capsys.readouterr().out
    assert contents(bucket, "/b/q2") == {path.name: path.read_bytes() for path in records.iterdir()}


def test_a_broken_track_leaves_nothing(music, bucket, tmp_path, capsys):
    """The build ends with the name of the file, and the place is empty again."""
    import shutil

    shutil.copytree(music / "q2", tmp_path / "data")
    broken = sorted((tmp_path / "data/train/train_data/mel_spectrogram").glob("*.npy"))[-1]
    raw = bytearray(broken.read_bytes())
    raw[-4:] = b"\x00\x00\xc0\x7f"  # a NaN in place of the last cell
    broken.write_bytes(raw)
    assert build(tmp_path / "data", "memory://b/q2", "data.on_error=stop") == 2
    assert broken.name in capsys.readouterr().err
    assert not bucket.find("/b/q2")


@pytest.mark.slow
def test_training_from_a_url(music, bucket, tmp_path, monkeypatch):
    """`fit` and `evaluate` take the URL, copy once, and the run then needs the store no more."""
    pytest.importorskip("tensorflow")
    assert build(music, "memory://b/q2") == 0
    assert fit_small("q2", "memory://b/q2", tmp_path / "run", "model.name=cnn1d", "training.epochs=1") == 0
    monkeypatch.setattr(Store, "get", None)  # would fail: nothing is copied again
    assert main(["evaluate", str(tmp_path / "run"), "--records", "memory://b/q2", "--out", str(tmp_path / "a")]) == 0
    bucket.store.clear()
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_a_damaged_copy_is_refused(music, records, bucket, tmp_path):
    """A shard of other bytes is named and not kept; once it is mended, the copy goes on."""
    assert build(music, "memory://b/q2") == 0
    name = next(path.name for path in records.iterdir() if "fold3" in path.name)
    good = bucket.cat_file(f"/b/q2/{name}")
    bucket.pipe_file(f"/b/q2/{name}", good[:-1] + b"?")
    with pytest.raises(RecordsError, match=rf"memory://b/q2/{name}: damaged"):
        fetch("memory://b/q2")
    bucket.rm_file(f"/b/q2/{name}")
    with pytest.raises(RecordsError, match=r"no such file, but the manifest lists it"):
        fetch("memory://b/q2")
    bucket.pipe_file(f"/b/q2/{name}", good)
    copy = fetch("memory://b/q2")
    assert copy.parent == tmp_path / "cache/tfmusic/records"
    Manifest.read(copy).verify(list(Manifest.read(copy).splits))
    assert [path.name for path in copy.parent.iterdir() if path.is_dir()] == [copy.name]


def test_names_stay_in_the_copys_folder(music, bucket, tmp_path):
    """A manifest whose shard would be written elsewhere is refused."""
    assert build(music, "memory://b/q2") == 0
    body = json.loads(bucket.cat_file("/b/q2/manifest.json"))
    body["splits"]["fold0"]["shards"][0]["file"] = "../../escaped"
    del body["sha256"]
    bucket.pipe_file("/b/q2/manifest.json", json.dumps(body | {"sha256": digest_of(body)}).encode())
    with pytest.raises(RecordsError, match=r"shard must be a plain name.*escaped"):
        fetch("memory://b/q2")
    assert not list(Path(tmp_path).rglob("escaped"))


def test_what_is_missing_is_named(music, monkeypatch, capsys):
    """A URL of no store, or of one whose package is not there; raw data must be in a folder."""
    with pytest.raises(UsageError, match="must be a URL"):
        Store("nowhere://b").names()
    assert build(music, "memory://") == 2
    assert "memory://: must name a folder" in capsys.readouterr().err
    assert main([*BUILD, "--data", "s3://b/q2"]) == 2
    assert "must be a folder, for example of a mounted bucket. Received: s3://b/q2" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build(music, "gs://b/q2") == 2
    assert "gs://b/q2: needs a package that is not installed: pip install 'tfmusic[gcs]'" in capsys.readouterr().err


def test_what_a_store_refuses_is_one_line(music, bucket, monkeypatch, capsys):
    """Clients raise errors of the system without a number: the URL and the reason are told, without a trace."""

    def refuse(*args, **kwargs):
        raise PermissionError("Access Denied")

    assert build(music, "memory://b/q2") == 0
    for name in ("ls", "put_file"):
        with monkeypatch.context() as refused:
            refused.setattr(type(bucket), name, refuse)
            assert build(music, "memory://b/other") == 2
        assert "tfmusic: memory://b/other: PermissionError: Access Denied" in capsys.readouterr().err
    monkeypatch.setattr(type(bucket), "cat_file", refuse)
    assert main(["fit", "q2", "--records", "memory://b/q2"]) == 2
    assert "tfmusic: memory://b/q2: PermissionError: Access Denied" in capsys.readouterr().err


def test_no_password_in_a_url(music, capsys):
    """A password in a URL is refused, and not repeated."""
    assert build(music, "ftp://me:secret@host/q2") == 2
    said = capsys.readouterr()
    assert "must not contain a password" in said.err
    assert "secret" not in said.err + said.out


def test_files_that_another_build_removes(tmp_path, monkeypatch):
    """A file that is gone already counts as removed, and a listing that one vanishes from is made again."""
    local = pytest.importorskip("fsspec.implementations.local").LocalFileSystem
    for name in ("a", "b"):
        (tmp_path / name).touch()
    store = Store(f"file://{tmp_path}")
    listing, failures = local.ls, iter([FileNotFoundError("b"), None])

    def ls(self, *arguments, **options):
        if (error := next(failures, None)) is not None:
            raise error
        return listing(self, *arguments, **options)

    monkeypatch.setattr(local, "ls", ls)
    assert store.names() == {"a", "b"}
    store.remove({"a", "gone"})
    assert store.names() == {"b"}
    assert Store(f"file://{tmp_path}/nothing").names() == set()


def test_no_bucket_is_made(monkeypatch, tmp_path):
    """A name of a bucket that is misspelt is told; other stores have folders, which are made."""
    file = tmp_path / "a"
    file.write_bytes(b"x")
    made, moved = [], []

    class Files:
        def makedirs(self, path, exist_ok):
            made.append(path)

        def put_file(self, path, to):
            if to.rpartition("/")[0] not in made:
                raise FileNotFoundError("The specified bucket does not exist")

        def mv(self, path, to):
            moved.append(to)

    monkeypatch.setattr(Store, "_open", lambda self: (Files(), self.url))
    Store("sftp://host/q2").put(file)
    with pytest.raises(UsageError, match=r"s3://buckte/q2: .*bucket must exist: The specified bucket"):
        Store("s3://buckte/q2").put(file)
    assert (made, moved) == (["sftp://host/q2"], ["sftp://host/q2/a"])


@pytest.mark.parametrize("before_it", [1, 2, 4])
def test_an_interrupted_overwrite_goes_on(music, records, bucket, monkeypatch, before_it):
    """Wherever old records are half removed, the same command goes on, and trusts no note that they have left."""
    assert build(music, "memory://b/q2", "record.hop_frames=156") == 0
    for name in [name for name in contents(bucket, "/b/q2") if "fold0" in name]:
        bucket.pipe_file(f"/b/q2/{name}.done.json", b"{}")  # as if that build had been killed after its manifest
    calls, remove_file = [], type(bucket).rm_file

    def remove_some(self, path):
        if len(calls) == before_it:
            raise KeyboardInterrupt
        calls.append(path)
        return remove_file(self, path)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(type(bucket), "rm_file", remove_some)
        assert build(music, "memory://b/q2", "--overwrite") == 130
    assert build(music, "memory://b/q2", "--overwrite") == 0
    assert contents(bucket, "/b/q2") == {path.name: path.read_bytes() for path in records.iterdir()}


def test_processes_of_a_machine_copy_once(music, bucket, monkeypatch):
    """Those that come while one copies wait for it."""
    assert build(music, "memory://b/q2") == 0
    both, copied, found, get = threading.Barrier(2), [], [], Store.get
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, name: (read(self, name), both.wait(60))[0])
    monkeypatch.setattr(Store, "get", lambda self, name, path: (copied.append(name), get(self, name, path)))
    threads = [threading.Thread(target=lambda: found.append(fetch("memory://b/q2"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(copied) == len(set(copied)) > 0


def test_half_files_on_a_disk_behind_a_url(music, records, tmp_path):
    """What a killed process has left there of a file is no file of the place, and goes with the next build."""
    out = tmp_path / "there" / "q2"
    out.mkdir(parents=True)
    (out / ".manifest.json.0.tfmusic.tmp").write_bytes(b"{")
    assert Store(f"file://{out}").names() == set()
    assert build(music, f"file://{out}") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in records.iterdir()
    }


def test_a_full_disk_behind_a_url(music, tmp_path, capsys):
    """One line, and no half of a file stays there."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert build(music, f"file://{disk}/q2") == 2
        assert "No space left on device" in capsys.readouterr().err
        assert not [path for path in disk.rglob("*") if ".tmp" in path.name]
        assert not (disk / "q2" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert build(music, f"file://{disk}/q2") == 0
