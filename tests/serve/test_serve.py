"""The page and the JSON endpoint: real HTTP against a real uvicorn on a free loopback port, and a real browser."""

import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small_run import save_doubt

from kbaseline.cli import main
from kbaseline.commands.predict import predict_files
from kbaseline.runs.run import Answer, SavedRun, load
from kbaseline.serve.app import application
from kbaseline.serve.predictor import Predictor
from kbaseline.serve.server import listen, server
from kbaseline.transforms import RandomTransforms

SIZE, MOST = 16, 1_000_000
"""Side of the network's square in pixels, and the most bytes a request may hold."""


def with_model(folder: Path) -> Path:
    """Gives a run folder an untrained network with a convolution, which compiles fast and tells all pictures apart."""
    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64)(RandomTransforms(SIZE, name="transforms")(image))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(x)
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D(name="head_average")(x))
    keras.Model(image, logits).save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def run(shared_run) -> Path:
    """A finished run with test-time augmentation and a doubt; that of `plain_port` is of an older version."""
    folder = with_model(shared_run("pets", **{"data.size": SIZE, "tta.views": 2}))
    save_doubt(folder, 8)
    return folder


@contextmanager
def served(run: SavedRun) -> Iterator[int]:
    """The port of a server of the run."""
    listener = listen("127.0.0.1", 0)
    with Predictor(run) as answers, listener:
        answers.warm_up()
        running = server(application(answers, MOST, "127.0.0.1"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(run) -> Iterator[int]:
    with served(load(run)) as number:
        yield number


def request(port: int, method: str, path: str, body=None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def refusal(port: int, method: str, path: str, body=None, **headers: str) -> tuple[int, str]:
    """Status and the one line of an answer that is an error and nothing else."""
    status, got, text = request(port, method, path, body, **headers)
    assert got["content-type"] == "application/json"
    (line,) = json.loads(text).values()
    assert "\n" not in line
    assert "Traceback" not in line
    return status, line


def form(data: bytes, field: str = "image", filename: str | None = "photo.jpg") -> dict:
    """Body and content type of a form with one file, or with one text if there is no file name."""
    name = "" if filename is None else f'; filename="{filename}"'
    head = f'--edge\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'
    return {
        "body": head.encode() + data + b"\r\n--edge--\r\n",
        "content_type": "multipart/form-data; boundary=edge",
    }


def picture(height: int = 40, width: int = 60, kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels, or so it says."""
    data = bytearray(picture())
    data[16:24] = (40_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def ask(port: int, body: bytes, query: str = "", **headers: str) -> dict:
    status, _, text = request(port, "POST", f"/predict{query}", body, **headers)
    assert status == 200, text
    return json.loads(text)


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURES = {
    "its own small size": picture(12, 12),
    "a photo on its side": picture(90, 50, "JPEG", exif=sideways()),
    "alpha": picture(60, 70, "PNG", "RGBA"),
    "WebP": picture(70, 60, "WEBP"),
}


def test_a_served_picture_has_the_bits_of_a_predicted_file(port, run, tmp_path):
    """Invariant: plain and TTA probabilities are those of `predict` of the same file alone, as a form or a body."""
    saved = load(run)
    for name, data in PICTURES.items():
        (tmp_path / "file").write_bytes(data)
        found = ask(port, data, "?top=3")
        assert {**ask(port, query="?top=3", **form(data)), "milliseconds": 0} == {**found, "milliseconds": 0}
        for tta, classes in ((False, found["classes"]), (True, found["tta"]["classes"])):
            expected = predict_files(saved, [tmp_path / "file"], tta=tta).probabilities[0]
            got = {one["name"]: one["probability"] for one in classes}
            assert [got[one] for one in saved.class_names] == [float(p) for p in expected], (name, tta)
            assert list(got.values()) == sorted(got.values(), reverse=True)
        assert found["tta"]["classes"] != found["classes"]


def test_the_answer_is_what_was_asked_for(port):
    """Golden: the keys, `top`, `tta`, and the picture's size right side up."""
    found = ask(port, PICTURES["a photo on its side"], "?tta=false&top=2")
    assert set(found) == {"classes", "set", "tta", "unfamiliarity", "unfamiliar", "image", "milliseconds"}
    assert found["unfamiliar"] == (found["unfamiliarity"] > 1)
    assert found["set"][:2] == [one["name"] for one in found["classes"]][: len(found["set"])]
    assert [set(one) for one in found["classes"]] == [{"name", "probability"}] * 2
    assert found["tta"] is None
    assert found["image"] == {"format": "JPEG", "height": 50, "width": 90}
    spent = found["milliseconds"]
    assert (spent["decode"] > 0, spent["plain"] > 0, spent["tta"]) == (True, True, None)
    found = ask(port, PICTURES["alpha"], "?top=999")
    assert (len(found["classes"]), len(found["tta"]["classes"])) == (3, 3)


def test_about_tells_what_there_is(port):
    """Golden: classes, accuracies by split, TTA's settings, and what a picture must be."""
    status, headers, text = request(port, "GET", "/about")
    about = json.loads(text)
    assert status == 200
    assert about["run"] == "pets"
    assert about["classes"] == ["cat", "dog", "emu"]
    assert about["accuracy"] == {"valid": {"plain": 0.8, "tta": 0.81}, "test": None}
    assert about["tta"]["views"] == 2
    assert (about["input"]["size"], about["input"]["resize"], about["input"]["max_bytes"]) == (SIZE, "crop", MOST)
    assert "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("status", "why", "asked"),
    [
        (400, "body: empty", {"body": b""}),
        (400, "missing", form(PICTURES["alpha"], field="image[]") | {"body": b"--edge--\r\n"}),
        (400, "'photo': unknown", form(PICTURES["alpha"], field="photo")),
        (400, "text, not a file", form(b"hello", filename=None)),
        (400, "file is empty", form(b"")),
        (400, "Missing boundary", form(b"") | {"content_type": "multipart/form-data"}),
        (400, "form: cannot be read", form(b"") | {"body": b"no form at all"}),
        (400, "Too many files", form(b"1\r\n" + form(b"2")["body"].removesuffix(b"\r\n--edge--\r\n"))),
        (400, "tta: must be true or false", {"path": "/predict?tta=perhaps"}),
        (400, "top: must be a whole number", {"path": "/predict?top=0"}),
        (400, "top: must be a whole number", {"path": f"/predict?top={'9' * 5000}"}),
        (400, "top: must be a whole number", {"path": "/predict?top=%D9%A3"}),
        (400, "Did you mean 'top'", {"path": "/predict?tops=3"}),
        (403, "own page", {"origin": "https://evil.example"}),
        (403, "own page", {"origin": "null"}),
        (404, "POST /predict", {"path": "/../../etc/passwd"}),
        (404, "POST /predict", {"path": "/predict/"}),
        (405, "POST /predict", {"method": "GET"}),
        (405, "POST /predict", {"method": "DELETE"}),
        (413, "more than 1 MB", {"body": bytes(MOST + 1)}),
        (413, "more than 1 MB", form(bytes(MOST))),
        (413, "more than 1 MB", {"body": iter([bytes(600_000)] * 2)}),
        (422, "not an image", {"body": EPS}),
        (422, "not an image", {"body": picture(16, 16, "ICO")}),
        (422, "not an image", {"body": b"plain text"}),
        (422, "not an image", {"body": b"\x89PNG"}),
        (422, "cannot be read", {"body": PICTURES["alpha"][:3000]}),
        (422, "decompression bombs", {"body": bomb()}),
    ],
)
def test_what_cannot_be_answered_is_one_line(status, why, asked, port):
    """Golden: the status of every refusal, and a line that says why."""
    asked = {"method": "POST", "path": "/predict", "body": PICTURES["alpha"], **asked}
    got, line = refusal(port, **asked)
    assert (got, why in line) == (status, True), line


def test_other_names_and_other_sites_are_kept_out(port):
    """Golden: a name that was pointed here (DNS rebinding) is refused; the machine's own names and pages are not."""
    for host, status in (
        ("evil.example", 400),
        (f"evil.example:{port}", 400),
        (f"localhost:{port}", 200),
        ("[::1]", 200),
    ):
        assert request(port, "GET", "/about", host=host)[0] == status, host
    own = f"127.0.0.1:{port}"
    assert request(port, "POST", "/predict", PICTURES["alpha"], origin=f"http://{own}", host=own)[0] == 200


def raw(port: int, data: bytes) -> bytes:
    """What comes back for these bytes, until the server closes or has said all of a short answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(data)
        got = line.recv(65536)
        while b"\r\n\r\n" in got and (missing := length(got)) > 0 and (more := line.recv(missing)):
            got += more
        return got


def length(got: bytes) -> int:
    """Bytes of the body still to come."""
    head, _, body = got.partition(b"\r\n\r\n")
    sizes = [int(row.split(b":")[1]) for row in head.split(b"\r\n") if row.lower().startswith(b"content-length:")]
    return sizes[0] - len(body) if sizes else 0


def test_too_large_is_said_before_all_is_read(port):
    """Invariant: 413 comes while the client has sent but a part, whether or not it said how much would come."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    said = raw(port, head + b"Content-Length: 1000000000000\r\n\r\nonly this")
    chunk = b"80000\r\n" + bytes(0x80000) + b"\r\n"
    streamed = raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk)
    for got in (said, streamed):
        assert got.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in got.lower()
        assert b"more than 1 MB" in got


MALFORMED = [
    b"\r\n\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%ff%fe?%00=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"".join([b"GET / HTTP/1.1\r\nHost: localhost\r\n", *(b"X-%d: a\r\n" % i for i in range(20_000)), b"\r\n"]),
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
]


def test_malformed_http_is_survived(port, caplog):
    """Invariant: bytes that are no HTTP get 4xx or are dropped, half a request may vanish; the rest is answered."""
    before = ask(port, PICTURES["WebP"])
    for data in MALFORMED:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
                line.sendall(data)
                line.shutdown(socket.SHUT_WR)
                got = line.recv(65536)
        except TimeoutError:
            raise
        except OSError:
            continue  # dropped before this end had said all
        assert got[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 501"), (data[:60], got[:100])
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nhalf")
    assert {**ask(port, PICTURES["WebP"]), "milliseconds": 0} == {**before, "milliseconds": 0}
    assert not caplog.records


def test_200_spoilt_bodies_are_survived(port, caplog, rng):
    """Invariant: pictures and forms with bytes changed, cut or put in give 200 or 4xx, never 5xx or silence."""
    whole = [*PICTURES.values(), bomb(), EPS]
    seen = set()
    for number in range(200):
        asked = form(whole[number % len(whole)]) if number % 2 else {"body": whole[number % len(whole)]}
        data = bytearray(asked.pop("body"))
        for _ in range(int(rng.integers(1, 6))):
            at, many = int(rng.integers(len(data))), int(rng.integers(1, 40))
            match int(rng.integers(4)):
                case 0:
                    data[at] = int(rng.integers(256))
                case 1:
                    del data[at : at + many]
                case 2:
                    data[at:at] = data[at : at + many]
                case 3:
                    data[min(at, 90) : min(at, 90)] = rng.bytes(many)
        if not number % 5:
            del data[int(rng.integers(len(data))) :]
        status, _, text = request(port, "POST", "/predict?tta=false", bytes(data), **asked)
        assert status in (200, 400, 422), text
        assert ("classes" in json.loads(text)) == (status == 200)
        seen.add(status)
    assert seen == {200, 400, 422}
    assert not caplog.records


def test_nothing_of_a_picture_is_written(port, monkeypatch):
    """Invariant: a picture above the size at which forms are usually put on disk opens no temporary file."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    data = picture(400, 700, "BMP")
    assert len(data) > 800_000
    monkeypatch.setattr("starlette.formparsers.MultiPartParser.spool_max_size", 1000)
    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    assert ask(port, **form(data))["image"]["format"] == "BMP"


class Slow(SavedRun):
    """A run whose predictions wait for each other's end, if they ever meet."""

    def answer(self, images: np.ndarray, **_: object) -> Answer:
        type(self).log.append("begins")
        assert type(self).go.wait(20)
        type(self).log.append("ends")
        return Answer(np.full((1, 3), 1 / 3, np.float32))

    def predict(self, images: np.ndarray, **_: object) -> np.ndarray:
        return self.answer(images).probabilities


def test_one_at_a_time_and_the_server_goes_on_answering(run):
    """Invariant: while a picture is predicted another waits, and the page is answered."""
    Slow.log, Slow.go = [], threading.Event()
    Slow.go.set()
    saved = load(run)
    slow = Slow(saved.folder, saved.config, saved.model, saved.class_names, saved.result)
    with served(slow) as port:
        Slow.log.clear()
        Slow.go.clear()
        threads = [
            threading.Thread(target=ask, args=(port, data, "?tta=false")) for data in list(PICTURES.values())[2:]
        ]
        for thread in threads:
            thread.start()
        assert request(port, "GET", "/")[0] == request(port, "GET", "/about")[0] == 200
        Slow.go.set()
        for thread in threads:
            thread.join()
        assert Slow.log == ["begins", "ends"] * 2


def test_an_unexpected_error_shows_no_traceback(run, monkeypatch, caplog):
    """Golden: a bug is 500 and one line to the client, and its traceback goes to the server's log."""
    Slow.log, Slow.go = [], threading.Event()
    Slow.go.set()
    saved = load(run)
    with served(Slow(saved.folder, saved.config, saved.model, ("cat",), saved.result)) as port:
        assert refusal(port, "POST", "/predict", PICTURES["alpha"]) == (
            500,
            "unexpected IndexError; see the server's log.",
        )
        assert request(port, "GET", "/about")[0] == 200
    assert [record.exc_info is not None for record in caplog.records] == [True]


@pytest.fixture(scope="module")
def plain_port(shared_run) -> Iterator[int]:
    """A server of a run whose configuration leaves TTA out, with class names that are markup."""
    saved = load(with_model(shared_run("plain", tta=False, **{"data.size": SIZE})))
    names = ("<script>document.title='pwned'</script>", '"><img src=x onerror=alert(1)>', "猫" * 60)
    with served(SavedRun(saved.folder, saved.config, saved.model, names, saved.result)) as port:
        yield port


def test_without_tta_the_answer_says_so(plain_port):
    """Golden: `tta` is null in answer and description, and asking for it is a line that says why not."""
    found = ask(plain_port, PICTURES["alpha"])
    assert (found["tta"], found["milliseconds"]["tta"]) == (None, None)
    assert (found["set"], found["unfamiliarity"], found["unfamiliar"]) == (None, None, None)
    assert json.loads(request(plain_port, "GET", "/about")[2])["tta"] is None
    status, line = refusal(plain_port, "POST", "/predict?tta=true", PICTURES["alpha"])
    assert (status, "turns it off" in line) == (400, True)


def test_the_page_needs_nothing_but_itself(port):
    """Invariant: no address but this server's, and a policy that allows its own script alone."""
    _, headers, text = request(port, "GET", "/", host="localhost")
    page = text.decode()
    assert "src=" not in page
    assert page.count("<script") == page.count("</script") == 1
    assert all(one.startswith("localhost/") for one in page.split("http://")[1:])
    assert "https://" not in page
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert policy["script-src"].startswith("'sha256-")


@pytest.mark.skipif(None in browser.PROGRAMS, reason="no chromium and chromedriver here")
def test_a_real_browser_shows_the_classes(port, plain_port, tmp_path):
    """Shown: by file input, drop and paste a picture's classes appear, plain and with TTA; no error in the console."""
    (tmp_path / "a.png").write_bytes(PICTURES["its own small size"])
    (tmp_path / "b.txt").write_text("no image")
    answered = (
        "return document.getElementById('answer').ariaBusy === 'false' && document.getElementById('status').textContent"
    )
    rows = "return [...document.querySelectorAll('#{} li')].map(row => row.textContent)"
    with browser.Browser(tmp_path / "profile", 390) as page:
        page.open(f"http://localhost:{port}/")
        assert page.run("return document.getElementById('image').matches('input:not([hidden])')")
        page.choose("#image", tmp_path / "a.png")
        said = page.wait(f"{answered} !== 'None yet.' && document.getElementById('status').textContent")
        found = ask(port, PICTURES["its own small size"])
        for name, classes in (("plain", found["classes"]), ("tta", found["tta"]["classes"])):
            shown = [f"{one['name']}{100 * one['probability']:.2f} %" for one in classes]
            assert page.run(rows.format(name)) == shown
        assert ("None of these, probably" in said) == found["unfamiliar"]
        assert f"{found['tta']['classes'][0]['name']}, " in said
        assert page.run("return document.getElementById('set').hidden") == found["unfamiliar"]
        assert page.run("return document.getElementById('preview').naturalWidth") == 12
        for gesture, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
            page.run("document.querySelectorAll('ol').forEach(list => list.replaceChildren())")
            page.run(
                f"""const held = new DataTransfer();
                held.items.add(new File([document.createElement('canvas').toDataURL()], 'x.png'));
                const event = new Event('{gesture}', {{bubbles: true, cancelable: true}});
                event.{holder} = held;
                document.body.dispatchEvent(event);"""
            )
            assert "cannot be read" in page.wait(answered), gesture
        assert all("422" in line for line in page.console())
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.open(f"http://localhost:{plain_port}/")
        assert "turns test-time augmentation off" in page.run("return document.getElementById('answer').textContent")
        page.choose("#image", tmp_path / "a.png")
        page.wait(f"{answered} !== 'None yet.'")
        assert len(page.run(rows.format("plain"))) == 3
        assert page.run("return document.title") == "plain: image classifier"
        assert page.run("return document.querySelectorAll('img').length") == 1
        assert page.console() == []


def test_the_command_serves_until_ctrl_c(run, tmp_path):
    """Golden: it says where it is ready, answers, refuses a port twice, and Ctrl-C ends it quietly with exit code 0."""
    command = [sys.executable, "-m", "kbaseline", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = process.stderr.readline()
            assert ready.startswith("ready on http://127.0.0.1:")
            port = int(ready.split(":")[2].split("/")[0])
            assert len(ask(port, PICTURES["alpha"])["classes"]) == 3
            taken = CliRunner().invoke(main, ["serve", str(run), "--port", str(port)])
            assert (taken.exit_code, taken.stderr.count("\n")) == (2, 1)
            assert f"port {port}: cannot be listened on (Address already in use)" in taken.stderr
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


def test_what_cannot_be_served_is_one_line(run, monkeypatch):
    """Golden: a host that is not this machine's, no run, and a missing package end with one line and exit code 2."""
    for arguments, why in (
        ([str(run), "--host", "192.0.2.1"], "192.0.2.1, port 8000: cannot be listened on"),
        ([str(run / "nowhere"), "--port", "0"], "no such folder"),
    ):
        done = CliRunner().invoke(main, ["serve", *arguments])
        assert (done.exit_code, done.stderr.count("\n"), why in done.stderr) == (2, 1, True), done.stderr
    monkeypatch.delitem(sys.modules, "kbaseline.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(main, ["serve", str(run)])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "needs the package uvicorn; run `pip install 'kbaseline[serve]'`" in done.stderr


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])  # noqa: S104 - listened on for a moment
def test_a_host_that_others_can_reach_is_warned_of(host, alone, run, monkeypatch):
    """Golden: listening beyond loopback prints that there is no password, and takes requests under any name."""
    asked = []
    monkeypatch.setattr("kbaseline.serve.server.application", lambda *given: asked.append(given[2]))
    monkeypatch.setattr("kbaseline.serve.server.server", lambda _: type("Server", (), {"run": lambda *_, **__: None})())
    monkeypatch.setattr("kbaseline.runs.run.set_compilation_cache", lambda _: None)
    monkeypatch.setattr("kbaseline.serve.predictor.Predictor.warm_up", lambda _: None)
    done = CliRunner().invoke(main, ["serve", str(run), "--port", "0", "--host", host])
    assert done.exit_code == 0, done.stderr
    assert ("no password" in done.stderr) != alone
    assert asked == [host if alone else None]
