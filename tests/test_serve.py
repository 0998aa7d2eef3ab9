"""The local server: the answers of `predict`, bounds that hold, no other site's page lets in, a page that works."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.test_explain import listener
from tfmusic.cli import main
from tfmusic.features import audio
from tfmusic.server import app

TOKEN = "a-token-of-many-signs"


@contextmanager
def running(predictor, *, max_mib=1, queue=4, time_limit_s=30.0, max_minutes=30.0, token=None):
    """Yields the port of a server in this process."""
    import uvicorn

    from tfmusic.server.app import Limits, make_app
    from tfmusic.server.guard import server_config

    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        hosts = [] if token else [f"127.0.0.1:{port}", f"localhost:{port}"]
        app = make_app(predictor, Limits(max_mib, queue, time_limit_s, max_minutes), hosts=hosts, token=token)
        server = uvicorn.Server(server_config(app))
        with in_thread(server, place, port):
            yield port


@contextmanager
def in_thread(server, place, port):
    """Runs a server of uvicorn on a socket, from when it is ready."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        wait_for(lambda: ask(port, "GET", "/ready")[0] == 200)
        yield
    finally:
        server.should_exit = True
        thread.join()


def wait_for(is_true, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if is_true():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it never came")


def ask(port, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        data = response.read()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(data) if is_json else data.decode(), response.headers
    finally:
        connection.close()


def form(files, **fields):
    """Returns body and headers of a multipart form."""
    parts = [
        (f'name="files"; filename="{name}"\r\nContent-Type: application/octet-stream', data) for name, data in files
    ]
    parts += [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    body = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + b"--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


def npy(mel):
    with io.BytesIO() as file:
        np.save(file, mel)
        return file.getvalue()


def loud(low, high, n_frames=60):
    mel = np.ones((1, 64, n_frames), np.float32)
    mel[:, low:high] = 20.0
    return npy(mel)


def post(port, files, headers=(), **fields):
    body, kind = form(files, **fields)
    return ask(port, "POST", "/v1/predict", body, kind | dict(headers))


@pytest.fixture(scope="module")
def port():
    with running(listener()) as port:
        yield port


def test_files_are_answered_in_their_order(port):
    """Several files, one of them broken: each has its answer or its error, under its own name."""
    files = [("a.npy", loud(0, 16)), ("나.npy", loud(48, 64)), ("../../c.npy", b"no spectrogram")]
    status, told, headers = post(port, files)
    assert status == 200
    assert [one["file"] for one in told["tracks"]] == ["a.npy", "나.npy", "../../c.npy"]
    assert [one.get("prediction") for one in told["tracks"]] == ["low", "high", None]
    assert told["tracks"][0]["parts"][0]["end_s"] == pytest.approx(60 * 0.032)
    assert told["tracks"][2]["error"].startswith("the file: must be a complete .npy file")
    assert "script-src 'self'" in headers["content-security-policy"]


def test_a_file_may_be_the_body(port):
    """As `curl --data-binary @FILE` sends it, whatever its type; told by its bytes or by ?name=; with ?metadata=."""
    mel = loud(0, 16)
    expected = post(port, [("a.npy", mel)])[1]["tracks"][0]
    for path, kind in (("", "application/x-www-form-urlencoded"), ("?name=b&metadata={}", "application/octet-stream")):
        status, told, _ = ask(port, "POST", f"/v1/predict{path.replace('=b', '=b.npy')}", mel, {"Content-Type": kind})
        assert status == 200
        assert told["tracks"][0] | {"file": "a.npy"} == expected
    assert told["tracks"][0]["file"] == "b.npy"
    for path, body, why in (("", b"", "audio"), ("?name=a.mp3", mel, "audio"), ("?metadata=[", mel, "metadata")):
        status, told, _ = ask(port, "POST", f"/v1/predict{path}", body)
        assert status == 422 and why in str(told)


def test_models_lists_the_one(port):
    """Task, labels and input."""
    status, told, _ = ask(port, "GET", "/v1/models")
    assert status == 200
    assert told["models"][0]["labels"] == ["low", "high", "가"] and "n_bins=64" in told["models"][0]["input"]


def test_pickles_are_never_loaded(port, tmp_path):
    """An .npy of objects is refused before anything in it runs."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with io.BytesIO() as file:
        np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
        status, told, _ = post(port, [("a.npy", file.getvalue())])
    assert status == 422
    assert "never unpickled" in told["tracks"][0]["error"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": ""}, 421),
    ],
)
def test_pages_of_other_sites_are_refused(port, headers, status):
    """Cross-origin posts, and a foreign name for our address (DNS rebinding); the body is not looked at."""
    assert post(port, [("a.npy", loud(0, 16))], headers)[0] == status


def test_our_own_page_may_post(port):
    """Origin and Host agree."""
    headers = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}", "Sec-Fetch-Site": "same-origin"}
    assert post(port, [("a.npy", loud(0, 16))], headers)[0] == 200


def test_large_requests_are_refused(port):
    """By the length they state, and by what they send where they state none."""
    big = [("a.npy", bytes(2 << 20))]
    status, told, _ = post(port, big)
    assert (status, told) == (413, {"error": "a request must be at most 1 MiB"})
    body, headers = form(big)
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    assert ask(port, "POST", "/v1/predict", chunks, headers)[0] == 413


@pytest.mark.parametrize(
    ("files", "fields", "status", "why"),
    [
        ([], {}, 422, "at least one file"),
        ([("a.npy", b"")], {"metadata": "[1]"}, 422, "metadata must be a JSON object"),
        ([("a.npy", b"")] * 21, {}, 400, "Too many files"),
    ],
)
def test_wrong_forms_are_explained(port, files, fields, status, why):
    """One line that says what must hold."""
    found, told, _ = post(port, files, **fields)
    assert found == status
    assert why in told["error"]


def test_unknown_paths_and_methods(port):
    """404 and 405, as JSON."""
    assert ask(port, "GET", "/../etc/passwd")[0] == 404
    assert ask(port, "GET", "/v1/predict")[0] == 405


def slow(event):
    """A model that answers when it is let."""
    from dataclasses import replace

    predictor = listener()

    def scores(mel, tokens):
        if mel.shape[1] > predictor.contract.frames:  # but the warm-up
            assert event.wait(60)
        return predictor.scores_fn(mel, tokens)

    return replace(predictor, scores_fn=scores)


def post_until_taken(port):
    """Returns the first answer but 'come again': another request may hold the place for a moment."""
    answers = iter(lambda: post(port, [("a.npy", loud(0, 16))]), None)
    return next(answer for answer in answers if answer[0] != 503)


def test_full_queue_asks_to_come_again():
    """Two places: the third request is refused at once, the first two are answered."""
    go = threading.Event()
    with running(slow(go), queue=2) as port, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post_until_taken, port) for _ in range(2)]
        wait_for(lambda: post(port, [])[0] == 503)
        status, _, headers = post(port, [("a.npy", loud(0, 16))])
        assert (status, headers["retry-after"]) == (503, "5")
        assert ask(port, "GET", "/health")[0] == 200
        go.set()
        assert [one.result()[0] for one in waiting] == [200, 200]
        assert post(port, [("a.npy", loud(0, 16))])[0] == 200


def test_time_limit_ends_a_request():
    """A request that takes too long is told so; the server goes on."""
    go = threading.Event()
    with running(slow(go), time_limit_s=0.3) as port:
        try:
            assert post(port, [("a.npy", loud(0, 16))])[0] == 503
        finally:
            go.set()
        wait_for(lambda: post(port, [("a.npy", loud(0, 16))])[0] == 200)


def test_a_file_that_decodes_too_long_frees_the_worker(monkeypatch):
    """The one worker gives it up at the time limit, so that others are answered while it would still be decoded."""

    def long(path, min_share):
        is_long = path.stat().st_size > 40_000
        yield from decode(path, min_share)
        for _ in range(6000 if is_long else 0):  # a minute
            yield 16000, np.zeros(1600, np.float32)
            time.sleep(0.01)

    decode = audio._decode
    monkeypatch.setattr(audio, "_decode", long)
    sounds = []
    for seconds in (1, 2):
        with io.BytesIO() as file:
            soundfile.write(file, np.zeros(seconds * 16000), 16000, format="WAV", subtype="PCM_16")
            sounds.append(file.getvalue())
    with running(listener(), time_limit_s=1.0) as port:
        assert post(port, [("long.wav", sounds[1])])[0] in (422, 503)
        wait_for(lambda: post(port, [("short.wav", sounds[0])])[0] == 200, 20)


@pytest.mark.parametrize("value", ["Infinity", "1e999"])
def test_metadata_that_is_no_number(port, value):
    """JSON of Python knows numbers that no year can be."""
    assert post(port, [("a.npy", loud(0, 8))], metadata=f'{{"album_year": {value}}}')[0] == 422


def test_long_tracks_are_refused():
    """A small file can be hours long, and would hold up everybody else."""
    with running(listener(), max_minutes=0.01) as port:
        status, told, _ = post(port, [("a.npy", loud(0, 16))])
    assert status == 422
    assert "at most 0.01 minutes long. Received: 0.0" in told["tracks"][0]["error"]


def test_token_is_asked_for():
    """Without it nothing is told but that the server runs; any name of the host will do with it."""
    with running(listener(), token=TOKEN) as port:
        assert ask(port, "GET", "/health")[0] == ask(port, "GET", "/")[0] == 200
        files = [("a.npy", loud(0, 16))]
        for path in ("/v1/card", "/v1/openapi"):
            assert ask(port, "GET", path)[0] == 401
        assert post(port, files)[0] == post(port, files, {"Authorization": "Bearer wrong"})[0] == 401
        assert post(port, files, {"Authorization": f"Bearer {TOKEN}", "Host": "music.example"})[0] == 200


def test_openapi_describes_what_is_answered(port):
    """Every path exists, and a response has the keys of its schema."""
    described = ask(port, "GET", "/v1/openapi")[1]
    schemas = described["components"]["schemas"]
    track, failed = post(port, [("a.npy", loud(0, 16)), ("b.npy", b"")])[1]["tracks"]
    assert set(track) == set(schemas["Track"]["properties"]) == set(schemas["Track"]["required"])
    assert set(failed) == set(schemas["Failed"]["required"])
    assert set(track["parts"][0]) == set(schemas["Part"]["required"])
    assert {"file", "prediction", "scores", "timeline", "windows"} <= set(track)
    for path, methods in described["paths"].items():
        for method in methods:
            assert ask(port, method.upper(), path)[0] not in (404, 405)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "pass --token"),
        (["--token", "short"], "--token must have 16"),
        (["--port", "70000"], "--port must be"),
    ],
)
def test_what_would_be_unsafe_is_refused(trained, capsys, monkeypatch, arguments, why):
    """Before a model is loaded or a port opened."""
    monkeypatch.delenv("TFMUSIC_TOKEN", raising=False)
    assert main(["serve", str(trained), *arguments]) == 2
    assert why in capsys.readouterr().err


def test_missing_package_is_one_line(trained, capsys, monkeypatch):
    """What to install is said."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", str(trained)]) == 2
    assert "pip install 'tfmusic[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_served_answers_are_those_of_predict_and_it_ends_cleanly(trained, music, tmp_path):
    """The command itself: several requests at once, scores to 1e-5, and Ctrl-C is no error."""
    files = sorted((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))[:4]
    assert main(["predict", str(trained), *map(str, files), "--out", str(tmp_path / "p.csv")]) == 0
    rows = pd.read_csv(tmp_path / "p.csv", dtype={"track_id": str})
    command = [sys.executable, "-m", "tfmusic", "serve", str(trained), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        port = int(process.stdout.readline().split("127.0.0.1:")[1].split()[0])
        wait_for(lambda: ask(port, "GET", "/ready")[0] == 200, 120)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda file: post(port, [(file.name, file.read_bytes())]), files))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read().strip() == "stopped"
    for (status, told, _), file, (_, row) in zip(answers, files, rows.iterrows(), strict=True):
        scores = told["tracks"][0]["scores"]
        assert status == 200
        assert row["track_id"] == file.stem
        np.testing.assert_allclose([*scores.values()], [row[f"score:{label}"] for label in scores], atol=1e-5)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, as Debian has it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


DROP = """
const [name, bytes] = [arguments[0], Uint8Array.from(atob(arguments[1]), (sign) => sign.charCodeAt(0))];
const data = new DataTransfer();
data.items.add(new File([bytes], name));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
"""


def test_a_killed_server_leaves_no_upload(tmp_path, monkeypatch):
    """While a track is predicted its bytes have no name on the disk; what is left of killed servers is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    folders = {name: tmp_path / f"tfmusic-serve-{name}-x" for name in (gone.stdout.strip(), str(os.getpid()), "one")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "track0.npy").symlink_to(tmp_path)
    app._remove_folders_of_killed()
    assert {path.name for path in tmp_path.iterdir()} == {folders[str(os.getpid())].name, "tfmusic-serve-one-x"}
    seen, predictor = [], listener()
    predict = type(predictor).predict

    def look(*arguments):
        seen.extend(path for path in tmp_path.rglob("track*") if not path.parent.name.endswith("-x"))
        seen.extend(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink())
        return predict(*arguments)

    monkeypatch.setattr(type(predictor), "predict", look)
    with running(predictor, max_mib=4) as port:
        for n_frames in (60, 10_000):  # in memory, and beyond
            del seen[:]
            assert post(port, [("song.npy", loud(0, 16, n_frames))])[0] == 200
            assert [path.suffix for path in seen if isinstance(path, Path)] == [".npy"]
            assert not any(b"NUMPY" in content for content in seen if isinstance(content, bytes))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_page_in_a_real_browser(browser, port, tmp_path):
    """Drop a file, choose another, read the answers, go through the parts by keyboard; no error is logged."""
    import base64

    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(f"http://127.0.0.1:{port}/")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda page: page.title == "t")
    half = np.ones((64, 200), np.float32)
    half[:16, :100], half[48:, 100:] = 9.0, 9.0
    browser.execute_script(DROP, "<b>노래</b>.npy", base64.b64encode(npy(half)).decode())
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".track"))
    (tmp_path / "b.npy").write_bytes(loud(0, 16))
    browser.find_element(By.ID, "files").send_keys(str(tmp_path / "b.npy"))
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".track")) == 2)
    newest, oldest = browser.find_elements(By.CSS_SELECTOR, ".track")
    assert newest.find_element(By.CLASS_NAME, "prediction").text == "low"
    assert oldest.find_element(By.TAG_NAME, "h2").text == "<b>노래</b>.npy"
    parts = oldest.find_elements(By.CSS_SELECTOR, ".parts button")
    assert [part.text.split()[1] for part in parts] == ["low", "high"]
    ActionChains(browser).send_keys_to_element(parts[1], Keys.ENTER).perform()
    assert parts[1].get_attribute("aria-current") == "true"
    cursor = oldest.find_element(By.CLASS_NAME, "cursor")
    assert float(cursor.value_of_css_property("left").removesuffix("px")) > 100
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.save_screenshot(str(tmp_path / "page.png"))


CONTRAST = """
const toLinear = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = numbers(colour).map(toLinear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    const parts = numbers(colour);
    if (parts.length === 3 || parts[3] === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")]
  .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .filter((one) => one.checkVisibility())
  .map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    return [one.tagName + "." + one.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_can_be_read_and_reached(browser, port, scheme, tmp_path):
    """Every text has a contrast of 4.5 or more, every control a name, and the tab key reaches them."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(f"http://127.0.0.1:{port}/")
    (tmp_path / "b.npy").write_bytes(loud(0, 16))
    browser.find_element(By.ID, "files").send_keys(str(tmp_path / "b.npy"))
    WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".track"))
    browser.find_element(By.TAG_NAME, "summary").click()
    contrasts = browser.execute_script(CONTRAST)
    assert len(contrasts) > 15
    assert [item for item in contrasts if item[1] < 4.5] == []
    for control in browser.find_elements(By.CSS_SELECTOR, "input, button, audio, meter, summary"):
        assert control.accessible_name or not control.is_displayed()
    reached = set()
    for _ in range(6):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        reached.add(active.get_attribute("id") or active.tag_name)
    assert {"files", "button", "a"} <= reached


def test_answers_do_not_wait_for_acknowledgements():
    """The two parts of an answer, head and body, are sent at once: every connection has TCP_NODELAY."""
    from tfmusic.server.app import listen

    with listen("127.0.0.1", 0) as place, socket.create_connection(place.getsockname()):
        connection, _ = place.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
