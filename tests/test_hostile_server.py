"""The server under clients that mean harm or are merely slow: right answers go on for others, memory stays bounded."""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager

import psutil
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from schemathesis.specs.openapi.adapter import parameters  # noqa: F401 - late, under hypothesis, it cannot be parsed

from tests.benchmarks.load import describe, measure
from tests.conftest import fit_small
from tests.disks import small_disk
from tests.test_explain import listener
from tests.test_serve import ask, form, in_thread, loud, post, wait_for
from tfmusic.cli import main
from tfmusic.server import guard
from tfmusic.server.app import Limits, make_app
from tfmusic.server.guard import Guard, server_config

GOOD = [("a.npy", loud(0, 16))]


@contextmanager
def running(*, grace_s=1.0, head_s=1.0, queue=8, max_mib=1):
    """Yields the port of a server with short patience, as `serve` makes it."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as place:
        port = place.getsockname()[1]
        app = make_app(listener(), Limits(max_mib, queue, 30.0), hosts=[f"127.0.0.1:{port}"])
        assert isinstance(app, Guard)
        app = Guard(app.app, app.hosts, app.token, app.max_bytes, grace_s)
        server = uvicorn.Server(server_config(app, head_s=head_s))
        with in_thread(server, place, port):
            yield port


@pytest.fixture(scope="module")
def port():
    with running() as port:
        yield port


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder in which the server keeps what it receives."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def talk(port, text, *, wait_s=5.0):
    """Returns all that the server says to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as peer:
        said = b""
        with contextlib.suppress(OSError):  # it may hang up before it has read all
            peer.sendall(text)
            peer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while part := peer.recv(65536):
                said += part
    return said


def head(port, *lines, target="/health", method="GET"):
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, "", ""]).encode()


def test_slow_heads_are_hung_up_on(port):
    """A client that sends its request drop by drop is cut off, while others are answered."""
    begin = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(40)]
    for peer in slow:
        peer.sendall(b"GET / HTTP/1.1\r\n")
    assert post(port, GOOD)[0] == 200
    open_ones = list(slow)
    while open_ones and time.monotonic() - begin < 30:
        for peer in list(open_ones):
            try:
                peer.sendall(b"X-a: b\r\n")
            except OSError:
                open_ones.remove(peer)
        time.sleep(0.1)
    assert not open_ones
    for peer in slow:
        peer.close()
    assert post(port, GOOD)[0] == 200


def test_slow_bodies_give_their_place_back(port):
    """Uploads that hardly move hold every place only for a while; then they are told and others are answered."""
    slow = []
    for _ in range(8):
        peer = socket.create_connection(("127.0.0.1", port), timeout=30)
        peer.sendall(head(port, "Content-Type: multipart/form-data; boundary=xyz", "Content-Length: 500000",
                          target="/v1/predict", method="POST") + b"--xyz\r\n")  # fmt: skip
        slow.append(peer)
    wait_for(lambda: post(port, GOOD)[0] == 503, 5)
    wait_for(lambda: post(port, GOOD)[0] == 200, 20)
    said = [peer.recv(65536) for peer in slow]
    assert all(b" 408 " in one.split(b"\r\n")[0] for one in said)
    for peer in slow:
        peer.close()


POST = {"target": "/v1/predict", "method": "POST"}
EVIL = "Origin: http://evil.example"
UNFINISHED = {
    "200": lambda port: head(port, "Content-Length: 50"),
    "200, HTTP/1.0": lambda port: head(port, "Content-Length: 50").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "200, chunked": lambda port: head(port, "Transfer-Encoding: chunked"),
    "200, expects 100": lambda port: head(port, "Content-Length: 50", "Expect: 100-continue"),
    "200, closes": lambda port: head(port, "Content-Length: 50", "Connection: close"),
    "400": lambda port: head(port, "Content-Length: 50", "Transfer-Encoding: chunked", **POST),
    "403": lambda port: head(port, "Content-Length: 50", EVIL, **POST),
    "404": lambda port: head(port, "Content-Length: 50", target="/nothing"),
    "405": lambda port: head(port, "Content-Length: 50", method="POST"),
    "413": lambda port: head(port, "Content-Length: 50000000", **POST),
    "421": lambda port: head(port, "Content-Length: 50").replace(b"127.0.0.1", b"evil"),
    "422": lambda port: head(port, "Transfer-Encoding: chunked", "Content-Type: application/json", **POST),
    "400, no HTTP": lambda port: b"no HTTP\r\n\r\n",
    "200, next head": lambda port: head(port),
}


def n_connections(port):
    return sum(one.status == "ESTABLISHED" and one.laddr.port == port for one in psutil.Process().net_connections())


@pytest.mark.parametrize("kind", UNFINISHED)
def test_silence_after_an_answer_ends_the_connection(monkeypatch, kind):
    """Clients that have their answer, send one byte of what they promised and fall silent hold no connection."""
    monkeypatch.setattr(guard, "_LINGER_S", 0.5)
    with running() as port, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(20)]
        for peer in peers:
            peer.sendall(UNFINISHED[kind](port))
        assert {peer.recv(12) for peer in peers} == {f"HTTP/1.1 {kind[:3]}".encode()}
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(b"5")
        wait_for(lambda: n_connections(port) == 0, 5)


def test_who_does_not_read_is_hung_up_on(monkeypatch):
    """Answers that nobody takes are given up, and hold no connection."""
    monkeypatch.setattr(guard, "MIN_BYTES_PER_S", 1 << 20)
    with running() as port, contextlib.ExitStack() as stack:
        for _ in range(5):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(("127.0.0.1", port))
            peer.settimeout(0.3)
            with contextlib.suppress(OSError):
                peer.sendall(head(port, target="/page.js") * 3000)
        assert post(port, GOOD)[0] == 200
        wait_for(lambda: n_connections(port) == 0, 10)


def test_full_house_lets_others_in(monkeypatch):
    """Where as many clients wait as are allowed, the one that waited longest makes room."""
    monkeypatch.setattr(guard, "_MAX_CONNECTIONS", 64)
    with running(head_s=60.0) as port, contextlib.ExitStack() as stack:
        for _ in range(63):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(head(port, "Content-Length: 5"))
        for _ in range(70):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(head(port)[:-2])
        time.sleep(1.2)
        assert [post(port, GOOD)[0] for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("end", ["half", "rest", "reset"])
def test_clients_that_leave_are_no_faults(port, caplog, end):
    """Connections that end, or break the protocol, at any point put nothing into the log."""
    body, headers = form(GOOD)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i:][:5000]), body[i:][:5000]) for i in range(0, len(body), 5000))
    texts = [
        head(port) * 3, head(port, *lines, f"Content-Length: {len(body)}", **POST) + body,
        head(port, *lines, "Transfer-Encoding: chunked", **POST) + chunks + b"zz\r\n",
        head(port, "Transfer-Encoding: chunked", target="/nothing") + b"3\r\nabc\r\nzz\r\n",
    ]  # fmt: skip
    for name in ("uvicorn.error", "asyncio", "python_multipart"):
        logging.getLogger(name).addHandler(caplog.handler)
    for text in texts:
        for part in (10, 150, len(text) // 2, len(text) - 8, len(text) - 1):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as peer, contextlib.suppress(OSError):
                peer.sendall(text[:part])
                time.sleep(0.02)
                if end == "half":
                    peer.shutdown(socket.SHUT_WR)
                elif end == "rest":
                    peer.sendall(text[part:])
                if end != "reset":
                    peer.settimeout(0.2)
                    while peer.recv(65536):
                        pass
    wait_for(lambda: n_connections(port) == 0, 10)
    for name in ("uvicorn.error", "asyncio", "python_multipart"):
        logging.getLogger(name).removeHandler(caplog.handler)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"),
        (("Content-Length: 5", "Content-Length: 6"), b"hello!"),
        (("Content-Length: +5",), b"hello"),
        (("Content-Length: 5, 6",), b"hello"),
        (("Content-Length: -1",), b""),
        (("Transfer-Encoding: xchunked",), b"0\r\n\r\n"),
        (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"zz\r\n\r\n"),
        (("Host: evil.example",), b""),
        (("X y: z",), b""),
        (("X: a\x00b",), b""),
        ((" folded: x",), b""),
        (("X: " + "a" * 200_000,), b""),
    ],
)
def test_smuggled_heads(port, lines, body):
    """What two parsers could read in two ways is refused, or is one request with one answer."""
    said = talk(port, head(port, *lines, target="/v1/predict", method="POST") + body)
    assert said.count(b"HTTP/1.1 ") <= 1
    assert b" 200 " not in said.split(b"\r\n")[0]
    assert post(port, GOOD)[0] == 200


@pytest.mark.parametrize(
    "target",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page.css/../../app.py", "/style.css%00.py",
        "/..%5c..%5cetc", "http://evil.example/health/x", "/" + "a" * 9000, "/v1/predict/../../x", "/%ff%fe",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(port, target):
    """No path reaches a file that is not one of the page's."""
    said = talk(port, head(port, "Connection: close", target=target))
    assert said.split(b" ")[1] in (b"404", b"400")
    assert b"root:" not in said
    assert b"import" not in said


def test_upgrades_and_forwarded_names_change_nothing(port):
    """No WebSocket is opened, and headers of proxies are not believed."""
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
               "Sec-WebSocket-Version: 13")  # fmt: skip
    assert b" 101 " not in talk(port, head(port, *upgrade))
    said = talk(port, head(port, "X-Forwarded-Host: a", "X-Forwarded-Proto: https", "Connection: close",
                           "Forwarded: host=a", "Origin: http://a", target="/v1/predict", method="POST"))  # fmt: skip
    assert said.split(b" ")[1] == b"403"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--xyz", b"--xyz--", b"--xyz\r\n\r\n", b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n",
        b"--xyz\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.npy\"\r\n\r\n",
        b"--xyz\r\nContent-Disposition: form-data; name=\"files\"; filename=\"../../a\0.npy\"\r\n\r\nx\r\n--xyz--\r\n",
        b"--xyz\r\n" + b"A: b\r\n" * 5000 + b"\r\n\r\n--xyz--\r\n",
        b"--xyz\r\n" + b"A" * 100_000,
        b"--xyz\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n" + b"[" * 60_000 + b"\r\n--xyz--\r\n",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the parser leaves its buffer to Python
def test_broken_forms(port, temporary, body):
    """A form that is none has a 4xx answer with a line, and leaves no file."""
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    status, told, _ = ask(port, "POST", "/v1/predict", body, headers)
    assert 400 <= status < 500
    assert "error" in json.dumps(told)
    assert list(temporary.iterdir()) == []


def test_disk_that_is_full(port, tmp_path, monkeypatch, capsys):
    """Without room for an upload the client is asked to come again; with room again it is answered."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        large = [("a.npy", loud(0, 16, 2000))]
        status, told, headers = post(port, large)
        assert status == 503
        assert "no room" in told["error"]
        assert headers["Retry-After"]
        assert "No space left on device" in capsys.readouterr().err
        assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert post(port, large)[0] == 200


def upload_many(port, count, *, size):
    """Returns how often each status came for uploads that run all at once, a third of them oversized."""

    async def upload(number):
        body, headers = form([("a.npy", loud(0, 16))] if number % 3 else [("big.npy", bytes(size))])
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [f"{name}: {value}" for name, value in headers.items()]
            lines += [f"Content-Length: {len(body)}", "Connection: close"]
            writer.write(head(port, *lines, target="/v1/predict", method="POST") + body)
            said = await asyncio.wait_for(reader.read(), 120)
            writer.close()
        except OSError:  # of an oversized one, whose connection may be closed while it still sends
            return 0, b""
        status = int(said.split(b" ")[1]) if said else 0
        return status, said

    async def all_of_them():
        return await asyncio.gather(*(upload(number) for number in range(count)))

    answers = asyncio.run(all_of_them())
    for number, (status, said) in enumerate(answers):
        assert status in ((200, 503) if number % 3 else (413, 503, 0)), said[:200]
        if status == 200:
            assert b'"prediction":"low"' in said
    return [status for status, _ in answers]


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.torture)])
def test_many_uploads_at_once(temporary, count, record_property):
    """All are answered or asked to come again; memory stays within some files, no file is left, others go on."""
    record_property("trials", count)
    process = psutil.Process()
    with running(queue=8, max_mib=2, grace_s=60.0, head_s=60.0) as port:
        upload_many(port, 10, size=3 << 20)
        before = process.memory_info().rss
        seen = upload_many(port, count, size=3 << 20)
        assert seen.count(200) >= 1
        assert post(port, GOOD)[0] == 200
        grown = process.memory_info().rss - before
        # The clients live in this process as well: what they hold and send is 3 MiB for every third.
        assert grown < (200 << 20) + count * (1 << 20) * 1.5
        wait_for(lambda: list(temporary.iterdir()) == [])
        wait_for(lambda: len(process.net_connections()) < 10)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.evil.example"])
def test_other_addresses_want_a_token(trained, capsys, monkeypatch, host):
    """Loopback by default; every other address is refused without a token, before a model is loaded."""
    monkeypatch.delenv("TFMUSIC_TOKEN", raising=False)
    assert main(["serve", str(trained), "--host", host]) == 2
    assert "pass --token" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("n_examples", [15, pytest.param(1000, marks=pytest.mark.torture)])
def test_answers_fit_their_description(port, n_examples, record_property):
    """schemathesis: requests made from /v1/openapi are answered as it says; no answer is a fault of the server."""
    described = ask(port, "GET", "/v1/openapi")[1]
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://127.0.0.1:{port}")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 5
    record_property("trials", n_examples * len(operations))
    for operation in operations:

        @settings(
            max_examples=n_examples, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck), database=None,
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def answered(case):
            response = case.call()
            case.validate_response(response, checks=[not_a_server_error, *_conformance()])

        answered()


def _conformance():
    return [checks.content_type_conformance, checks.response_schema_conformance, checks.status_code_conformance]


@pytest.mark.torture
def test_load(records, music, tmp_path, record_property):
    """Under 1, 8 and 64 clients every answer is that of the model; requests a second are printed beside its own."""
    tracks = sorted((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))[:4]
    size = ("model.name=resnet18", "model.width=16", "input.frames=157", "training.epochs=1")
    assert fit_small("q2", records, tmp_path / "run", *size) == 0
    assert main(["export", str(tmp_path / "run")]) == 0
    found = measure(tmp_path / "run" / "export", tracks, rounds=3, seconds=8.0)
    record_property("trials", sum(len(taken) for name, (_, taken) in found.items() if name != "model"))
    record_property("measured", "\n" + describe(found))
