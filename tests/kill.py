"""Commands killed with -9 at random moments and run again: `python -m tests.kill --trials 100 [COMMAND[=TRIALS] ...]`.

Half of the trials kill after a random time, with all workers. The others kill at a random touch of the disk (a file
opened, renamed, removed, a folder made) or a millisecond later, so that the short moments between two of them are met
as well. What is visible after the kill must be whole, and after the same command has run again the result must be that
of an undisturbed run, with no temporary file left. After every fourth kill, the command runs twice at once.

TensorFlow is imported once; every trial is a fork of that process, which has not used it yet.
"""

import argparse
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tfmusic

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
SMALL = (
    "model.name=cnn1d", "model.width=4", "input.frames=64", "input.hop_frames=64", "metadata.fields=[]",
    "training.fold=0", "training.select=best", "training.batch_size=8", "training.epochs=3",
    "training.tensorboard=false", "training.warmup_epochs=0.5",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command to be killed.

    Attributes:
        arguments: of the command, given the folder of the inputs, the output, and how many processes work.
        result: what of an output is compared, by name.
        visible: checks what stands under the output's name after a kill, given what should.
        again: arguments of the second run; by default those of the first.
        most_workers: processes that it works with at most.
        name: of the output.
    """

    arguments: Callable[[Path, Path, int], list[str]]
    result: Callable[[Path], dict[str, str]]
    visible: Callable[[Path, dict[str, str]], None]
    again: Callable[[Path, Path, int], list[str]] | None = None
    most_workers: int = 2
    name: str = "out"


def hashes(folder):
    """Returns the sha256 of every file of a folder, or of one file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] or [folder]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(path):
    """Returns a digest of all arrays of a .keras file; its dates are left out."""
    import h5py

    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(
            lambda name, item: digest.update(name.encode() + (item[()].tobytes() if hasattr(item, "shape") else b""))
        )
    return digest.hexdigest()


def run_result(run):
    """Returns what a training is compared by: weights, calibration, the numbers of its epochs."""
    found = {
        which: weights(run / f"checkpoints/{which}.keras")
        for which in ("best", "last")
        if (run / f"checkpoints/{which}.keras").is_file()
    }
    found["calibration"] = (run / "calibration.json").read_text()
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    found["history"] = json.dumps(
        [{k: v for k, v in line.items() if k not in ("seconds", "input_wait")} for line in lines]
    )
    return found


def export_result(out):
    """Returns what an export answers for a spectrogram, and its small files; asked in a process of its own."""

    def answer():
        import numpy as np

        from tfmusic.inference.model_folder import load_predict_fn

        mel = np.random.default_rng(0).random((128, 300), np.float32)
        found = load_predict_fn(out)(mel)
        sys.stdout.write(hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest())

    code, text = forked(answer)
    assert code == 0, text
    names = ("contract.json", "calibration.json", "labels.txt", "model_card.json")
    return {"answer": text} | {name: (out / name).read_text() for name in names}


def all_or_nothing(out, expected):
    assert not out.exists() or hashes(out) == expected, f"{out}: half a folder is visible"


def whole_files(out, expected):
    seen = (
        {name: one for name, one in hashes(out).items() if not Path(name).name.startswith(".")} if out.exists() else {}
    )
    assert seen.items() <= expected.items(), f"{out}: half a file is visible"


def no_manifest_before_the_rest(out, expected):
    if (out / "manifest.json").exists():
        assert expected.items() <= hashes(out).items(), f"{out}: half a folder is visible"


def verified(out, expected):
    from tfmusic.integrity import verify

    assert not out.exists() or not verify(out).faults, f"{out}: {verify(out).faults}"


def whole_checkpoints(out, expected):
    for path in out.rglob("*"):
        if path.suffix in (".keras", ".npz") and ".tmp" not in path.name:
            assert zipfile.ZipFile(path).testzip() is None, path
    if (out / "metrics.jsonl").is_file():
        assert all(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())


COMMANDS = {
    "build-records": Command(
        lambda base, out, workers: [
            "build-records", "q2", "--data", str(base / "music"), "--out", str(out), "--workers", str(workers),
            "--num-shards", "12",
        ],
        hashes, all_or_nothing,
    ),
    "build-records on a store": Command(
        lambda base, out, workers: [
            "build-records", "q2", "--data", str(base / "music"), "--out", f"file://{out}", "--workers", str(workers),
            "--num-shards", "12", "--overwrite",
        ],
        hashes, no_manifest_before_the_rest,
    ),
    "extract": Command(
        lambda base, out, workers: [
            "extract", "q2", "--data", str(base / "sound"), "--out", str(out), "--workers", str(workers)
        ],
        hashes, whole_files,
    ),
    "fit": Command(
        lambda base, out, workers: ["fit", "q2", "--records", str(base / "records"), "--out", str(out), *SMALL],
        run_result, whole_checkpoints,
        lambda base, out, workers: [
            "fit", "q2", "--records", str(base / "records"), "--out", str(out), *SMALL,
            *(["--resume"] if (out / "backup/state.npz").is_file() else []),
        ],
        most_workers=1,
    ),
    "export": Command(
        lambda base, out, workers: ["export", str(base / "runs/0"), "--out", str(out)], export_result, verified,
        most_workers=1,
    ),
    "ensemble": Command(
        lambda base, out, workers: [
            "ensemble", str(base / "runs/0"), str(base / "runs/1"), "--out", str(out), "--records",
            str(base / "records"),
        ],
        run_result, verified, most_workers=1,
    ),
    "inspect": Command(
        lambda base, out, workers: ["inspect", "q2", "--data", str(base / "music"), "--out", str(out)],
        hashes, all_or_nothing, most_workers=1,
    ),
    "predict": Command(
        lambda base, out, workers: ["predict", str(base / "runs/0"), str(base / "music/q2/test"), "--out", str(out)],
        hashes, all_or_nothing, most_workers=1, name="out.json",
    ),
    "predict as it goes": Command(
        lambda base, out, workers: ["predict", str(base / "runs/0"), str(base / "music/q2/test"), "--out", str(out)],
        hashes, lambda out, expected: None,
        lambda base, out, workers: [
            "predict", str(base / "runs/0"), str(base / "music/q2/test"), "--out", str(out),
            *(["--resume"] if out.exists() else []),
        ],
        most_workers=1, name="out.csv",
    ),
    "embed": Command(
        lambda base, out, workers: ["embed", str(base / "runs/0"), str(base / "music/q2/test"), "--out", str(out)],
        hashes, all_or_nothing, most_workers=1, name="out.npz",
    ),
}  # fmt: skip


def forked(work, before=lambda: None, kill_after_s=None):
    """Returns the exit code of work in a fork, with its group killed after some time, and what it printed."""
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setsid()
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
                before()
                code = work() or 0
            except BaseException as error:
                sys.stdout.write(repr(error))
            finally:
                os._exit(code)
        status = wait(child, kill_after_s)
        while children_of_group(child):  # workers follow their parent
            time.sleep(0.01)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read().decode(errors="replace")


def wait(child, kill_after_s):
    end_s = None if kill_after_s is None else time.monotonic() + kill_after_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if end_s is not None and time.monotonic() > end_s:
            os.killpg(child, signal.SIGKILL)
            end_s = None
        time.sleep(0.002)


def children_of_group(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def count_touches(folder, act):
    """Calls `act(n)` at the n-th touch of the disk below a folder, in this process."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in TOUCHES and arguments and str(arguments[0]).startswith(str(folder)):
            count += 1
            act(count)

    sys.addaudithook(hook)


def killer(folder, number, delay_s):
    """Returns what makes a process end itself at a touch of the disk, or shortly after it."""

    def act(n):
        if n != number:
            return
        if not delay_s:
            os.killpg(0, signal.SIGKILL)
        threading.Timer(delay_s, lambda: os.killpg(0, signal.SIGKILL)).start()

    return lambda: count_touches(folder, act)


def main_of(arguments):
    from tfmusic.cli import main

    return lambda: main(arguments)


def make_inputs(base):
    """Writes music, sound, records and two runs for the commands to work on."""
    import numpy as np
    import soundfile

    from tfmusic.datasets import synthetic

    synthetic.write(base / "music", n_tracks=20, seed=3, on_track=lambda: None)
    (base / "sound").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        soundfile.write(base / "sound" / f"{n}.wav", rng.normal(0, 0.1, 40000).astype(np.float32), 16000)
    records = COMMANDS["build-records"].arguments(base, base / "records", 1)
    runs = [[*COMMANDS["fit"].arguments(base, base / "runs" / str(n), 1), f"training.seed={n}"] for n in range(2)]
    for arguments in (records, *runs):
        code, text = forked(main_of(arguments))
        assert code == 0, text


def undisturbed(command, base, folder):
    """Returns the result of a run that nothing disturbs, its seconds by number of workers, and its touches."""
    out, touches, seconds = folder / "1" / command.name, folder / "touches", []
    file = os.open(touches, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for workers in range(1, command.most_workers + 1):
        (folder / str(workers)).mkdir()
        before = (
            (lambda: count_touches(out.parent, lambda n: os.write(file, f"{n}\n".encode()))) if workers == 1 else int
        )
        begin = time.monotonic()
        code, text = forked(main_of(command.arguments(base, folder / str(workers) / command.name, workers)), before)
        seconds.append(time.monotonic() - begin)
        assert code == 0, text
    os.close(file)
    expected = command.result(out)
    for workers in range(2, command.most_workers + 1):
        assert command.result(folder / str(workers) / command.name) == expected
    return expected, seconds, int(touches.read_text().split()[-1])


def try_once(command, base, folder, expected, rng, seconds, touches):
    """Kills a run, looks at what is visible, runs it again and compares; returns whether the kill came in time."""
    folder.mkdir()
    out = folder / command.name
    if rng.random() < 0.5:
        workers = rng.randint(1, command.most_workers)
        code, _ = forked(
            main_of(command.arguments(base, out, workers)), kill_after_s=rng.uniform(0.05, 1.05) * seconds[workers - 1]
        )
    else:
        delay_s = rng.choice((0.0, rng.uniform(0, 0.002)))
        first = main_of(command.arguments(base, out, 1))  # all of the writing in this process
        code, _ = forked(first, killer(folder, rng.randint(1, touches), delay_s))
    is_killed = code == -signal.SIGKILL
    command.visible(out, expected)
    if code:
        again = (command.again or command.arguments)(base, out, 1)
        if out.exists() and command.visible in (all_or_nothing, verified):
            assert command.result(out) == expected
            again.append("--overwrite")  # what was to be removed at the end is removed now
        code, text = forked(main_of(again))
        assert code == 0, f"{' '.join(again)}: {text}"
    found = command.result(out)
    assert found == expected, {name: found.get(name) for name in expected if found.get(name) != expected[name]}
    check_leftovers(folder)
    shutil.rmtree(folder)
    return is_killed


def check_leftovers(folder):
    left = [str(path) for path in folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
    assert not left, left


def run_two(command, base, folder, expected, seconds):
    """Runs a command twice at once to one output: one at least ends well, the other too or in one line."""
    folder.mkdir()
    out, answers = folder / command.name, []
    work = main_of(command.arguments(base, out, 1))
    threads = [
        threading.Thread(target=lambda wait_s=wait_s: (time.sleep(wait_s), answers.append(forked(work))))
        for wait_s in (0.0, random.uniform(0.0, seconds))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(code for code, _ in answers) in ([0, 0], [0, 2]), answers
    for code, text in answers:
        assert not code or any(why in text for why in ("another", "exists already")), text
        assert "Traceback" not in text
    assert command.result(out) == expected
    check_leftovers(folder)
    shutil.rmtree(folder)


def torture(name, base, trials, seed):
    """Returns in how many of the trials something was lost, each of which is printed; progress goes to stderr."""
    command, rng, folder = COMMANDS[name], random.Random(f"{seed}/{name}"), base / name
    folder.mkdir()
    (folder / "reference").mkdir()
    expected, seconds, touches = undisturbed(command, base, folder / "reference")
    killed = lost = 0
    for trial in range(trials):
        try:
            killed += try_once(command, base, folder / str(trial), expected, rng, seconds, touches)
            if trial % 4 == 3:
                run_two(command, base, folder / f"{trial}-two", expected, seconds[0])
        except Exception as error:  # a file that cannot be read as much as one that differs
            lost += 1
            sys.stdout.write(f"{name}, trial {trial} of seed {seed}: {type(error).__name__}: {error}\n")
            sys.stdout.flush()
        if (trial + 1) % 10 == 0:
            sys.stderr.write(f"{name}: {trial + 1} of {trials} trials, {killed} killed before their end, {lost} lost\n")
    sys.stdout.write(
        f"{name}: {trials} trials, {killed} killed before their end, {lost} lost;"
        f" undisturbed {seconds[0]:.1f} s and {touches} touches of the disk\n"
    )
    sys.stdout.flush()
    return lost


def run(arguments: Sequence[str]) -> int:
    """Tortures the commands named; returns 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "commands", nargs="*", default=[], help=f"some of {', '.join(COMMANDS)}, or NAME=TRIALS; all by default"
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    package = Path(tfmusic.__file__).parent
    for path in sorted(package.rglob("*.py")):  # before the forks, which then need not
        if path.stem not in ("__main__", "__init__"):
            importlib.import_module(".".join(("tfmusic", *path.relative_to(package).with_suffix("").parts)))
    with tempfile.TemporaryDirectory(prefix="tfmusic-kill-") as base:
        os.environ["TMPDIR"] = tempfile.tempdir = base  # what the killed leave there goes as well
        make_inputs(Path(base))
        words = [word.partition("=") for word in args.commands or COMMANDS]
        lost = sum(torture(name, Path(base), int(trials or args.trials), args.seed) for name, _, trials in words)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
