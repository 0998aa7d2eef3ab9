"""How many tracks a second `serve` predicts, beside the model alone.

Called as `python -m tests.benchmarks.load EXPORT TRACK.npy ...`.

The model alone is the exported SavedModel, called in a loop by a process of its own. Both take the same tracks, in
turns: each round asks first the model and then the server with 1, 8 and 64 clients at once. The clients run on the
same machine, and every answer is compared with that of the model.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.test_serve import ask, form, wait_for

ROOT = Path(__file__).parents[2]
CLIENTS = (1, 8, 64)
QUEUE = 128  # requests at once, so that none of the clients is asked to come again

BARE = """
import json, sys, time
import numpy as np
from tfmusic.features.npy import read_values
from tfmusic.inference.model_folder import load_contract
from tfmusic.inference.model_folder import load_predict_fn
from pathlib import Path
export = Path(sys.argv[1])
labels = load_contract(export).labels
mels = [read_values(Path(name), load_contract(export).n_bins) for name in sys.argv[2:]]
answer = load_predict_fn(export)
scores = [dict(zip(labels, answer(mel)["track_scores"].tolist())) for mel in mels]
print(json.dumps(scores), flush=True)
for line in sys.stdin:
    end, taken = time.monotonic() + float(line), []
    while time.monotonic() < end:
        begin = time.monotonic()
        answer(mels[len(taken) % len(mels)])
        taken.append(time.monotonic() - begin)
    print(json.dumps(taken), flush=True)
"""


@contextmanager
def child(*words):
    """Yields a process of this Python that is written to and read from, and ended afterwards."""
    command = [sys.executable, *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def ask_until(end_s, port, bodies, right, first):
    """Returns the seconds of every request of one client until a time; raises where an answer is not the model's."""
    connection, taken = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
    while time.monotonic() < end_s:
        number = (first + len(taken)) % len(bodies)
        begin = time.monotonic()
        connection.request("POST", "/v1/predict", *bodies[number])
        response = connection.getresponse()
        data = response.read()
        taken.append(time.monotonic() - begin)
        assert response.status == 200, data[:500]
        found = json.loads(data)["tracks"][0]["scores"]
        assert found.keys() == right[number].keys()
        assert all(abs(found[name] - score) < 1e-5 for name, score in right[number].items()), (found, right[number])
    connection.close()
    return taken


def measure(export, tracks, *, rounds, seconds, clients=CLIENTS):
    """Returns by name, `model` or the number of clients, the requests a second and the seconds of all rounds."""
    bodies = [form([(path.name, path.read_bytes())]) for path in tracks]
    with (
        child("-c", BARE, str(export), *map(str, tracks)) as bare,
        child("-m", "tfmusic", "serve", str(export), "--port", "0", "--queue", str(QUEUE)) as server,
    ):
        right = json.loads(bare.stdout.readline())
        port = int(server.stdout.readline().split("http://")[1].split()[0].rpartition(":")[2])
        wait_for(lambda: ask(port, "GET", "/ready")[0] == 200)
        found = {name: ([], []) for name in ("model", *clients)}
        for number in range(-1, rounds):  # the first round is to warm up
            for name in found:
                begin = time.monotonic()
                if name == "model":
                    bare.stdin.write(f"{seconds}\n")
                    bare.stdin.flush()
                    taken = json.loads(bare.stdout.readline())
                else:
                    with ThreadPoolExecutor(name) as pool:
                        asked = [pool.submit(ask_until, begin + seconds, port, bodies, right, i) for i in range(name)]
                        taken = [one for future in asked for one in future.result()]
                if number >= 0:
                    found[name][0].append(len(taken) / (time.monotonic() - begin))
                    found[name][1].extend(taken)
    return found


def describe(found):
    """Returns a table: requests a second and their share of the model's, the median and the slowest of a hundred."""
    lines = ["                  a second (rounds)          of the model   p50 ms   p99 ms   requests"]
    bare = statistics.median(found["model"][0])
    for name, (rates, taken) in found.items():
        what = "the model alone" if name == "model" else f"serve, {name} client{'s' * (name > 1)}"
        rate, (p50, p99) = statistics.median(rates), 1e3 * np.percentile(taken, [50, 99])
        spread = f"{rate:.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(f"{what:18}{spread:26}{rate / bare:12.2f}{p50:10.1f}{p99:9.1f}{len(taken):11,}")
    return "\n".join(lines)


def run(arguments):
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("tracks", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of a round")
    args = parser.parse_args(arguments)
    sys.stdout.write(describe(measure(args.export, args.tracks, rounds=args.rounds, seconds=args.seconds)) + "\n")


if __name__ == "__main__":
    run(sys.argv[1:])
