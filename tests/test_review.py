"""The stage and its server: what is served to whom, and what is refused."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.review import STAGE, main
from raters.journal import to_line
from raters.review_page.book import ReviewBook
from raters.review_page.label_index import LabelIndex
from raters.review_page.server import TOKEN_HEADER, ReviewServer
from raters.reviews import REVIEWS
from raters.trace_runs import TraceRun
from tests.small_runs import draw, run_of
from tests.small_training import write_trace_run
from tests.stage_runs import INTERRUPTED, Run, calls_of, leave_the_user, read, refused_line, started

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def server(made: Path) -> Iterator[ReviewServer]:
    (made / REVIEWS).unlink(missing_ok=True)
    serving = ReviewServer(ReviewBook(LabelIndex.of(TraceRun.read(made))))
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        serving.shutdown()
        serving.server_close()


def ask(server: ReviewServer, path: str, body: object = None, method: str | None = None, **headers: str) -> Answer:
    """Send a request as the page does, with other headers where they are given; `None` leaves one out."""
    port = server.server_port
    given = {"Host": f"127.0.0.1:{port}", TOKEN_HEADER: server.token}
    if body is not None:
        given["Content-Type"] = "application/json"
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    for name, value in given.items():
        if value:
            connection.putheader(name, value)
    if data is not None and "Content-Length" not in given:
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


REJECT = {"place": 0, "action": "reject"}


def test_the_page_comes_with_a_strict_policy(server: ReviewServer) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, content = ask(server, path)
        assert status == 200
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert headers["referrer-policy"] == "no-referrer"
        assert b"http://" not in content
        assert b"https://" not in content
    page = ask(server, "/")[2].decode()
    assert "<script>" not in page
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)


def test_labels_a_page_at_a_time(server: ReviewServer) -> None:
    rows = json.loads(ask(server, "/labels")[2])
    count = len(server.book.index)
    assert rows["counts"] == {"all": count, "open": count, "reviewed": 0, "unmatched": 0, "flagged": 0}
    assert [row["place"] for row in rows["rows"]] == list(range(count))
    status, _, content = ask(server, "/review", REJECT)
    assert status == 200
    assert json.loads(content)["row"]["review"] == "reject"
    assert json.loads(content)["counts"]["open"] == count - 1
    assert [row["place"] for row in json.loads(ask(server, "/labels?show=reviewed")[2])["rows"]] == [0]
    behind = json.loads(ask(server, "/labels?show=open&after=3")[2])
    assert (behind["rows"][0]["place"], behind["rank"], behind["found"]) == (4, 3, count - 1)
    before = json.loads(ask(server, "/labels?before=3")[2])
    assert [row["place"] for row in before["rows"]] == [0, 1, 2]
    item_id = server.book.index.keys[7][0]
    (row,) = json.loads(ask(server, f"/labels?find={item_id.upper()}")[2])["rows"]
    assert row["item_id"] == item_id
    label = json.loads(ask(server, "/label?place=7")[2])
    assert (label["item_id"], len(label["accepted"]), len(label["rejected"])) == (item_id, 1, 2)
    assert label["accepted"][0]["kept"] is True
    assert label["inputs"][0][0] == "text"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/", None, {TOKEN_HEADER: ""}, 403),
        ("/?token=", None, {TOKEN_HEADER: ""}, 403),
        ("/?token=wrong", None, {TOKEN_HEADER: ""}, 403),
        ("/labels", None, {TOKEN_HEADER: "wrong"}, 403),
        ("/labels", None, {TOKEN_HEADER: "w\u00fcrst"}, 403),
        # A name that was pointed to this machine is not this machine (DNS rebinding).
        ("/labels", None, {"Host": "rebound.example"}, 403),
        ("/labels", None, {"Host": "127.0.0.1.rebound.example"}, 403),
        ("/labels", None, {"Host": "127.0.0.1"}, 403),
        ("/labels", None, {"Host": "[::1]:80"}, 403),
        ("/labels", None, {"Host": ""}, 403),
        ("/labels", None, {"Origin": "http://evil.example"}, 403),
        ("/labels", None, {"Origin": "null"}, 403),
        ("/labels", None, {"Sec_Fetch_Site": "cross-site"}, 403),
        ("/labels", None, {"Sec_Fetch_Site": "same-site"}, 403),
        ("/review", REJECT, {TOKEN_HEADER: ""}, 403),
        ("/review?token={token}", REJECT, {TOKEN_HEADER: ""}, 403),
        ("/review", REJECT, {"Origin": "http://127.0.0.1:1"}, 403),
        ("/review", REJECT, {"Origin": "https://127.0.0.1:{port}"}, 403),
        ("/review", REJECT, {"Content_Type": "text/plain"}, 415),
        ("/review", REJECT, {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ("/review", b"{", {}, 400),
        ("/review", b"[1]", {}, 400),
        ("/review", b"\xff\xfe", {}, 400),
        ("/review", b"[" * 200_000, {}, 400),
        ("/review", {"place": 0, "action": "delete"}, {}, 400),
        ("/review", b"", {"Content_Length": "-1"}, 411),
        ("/review", b"", {"Content_Length": "999999999999"}, 413),
        ("/labels?show=mine", None, {}, 400),
        ("/labels?after=x", None, {}, 400),
        ("/labels?after=99999999999999999999", None, {}, 400),
        ("/label?place=99999", None, {}, 404),
        ("/label", None, {}, 404),
        ("/server.py", None, {}, 404),
        ("/../server.py", None, {}, 404),
        ("/%2e%2e/server.py", None, {}, 404),
        ("/elsewhere", REJECT, {}, 404),
    ],
)
def test_what_is_refused_is_not_written(
    server: ReviewServer, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    filled = {name: value.replace("{port}", str(server.server_port)) for name, value in headers.items()}
    found, _, content = ask(server, path.replace("{token}", server.token), body, **filled)
    assert found == status, content
    assert json.loads(content)["error"]
    assert server.token not in content.decode()
    assert not (server.book.index.run.folder / REVIEWS).exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_not_known(server: ReviewServer, method: str) -> None:
    assert ask(server, "/labels", method=method)[0] == 501


def test_the_page_may_name_itself(server: ReviewServer) -> None:
    own = f"http://localhost:{server.server_port}"
    host = f"localhost:{server.server_port}"
    assert ask(server, "/review", REJECT, Host=host, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(server, f"/?token={server.token}", **{TOKEN_HEADER: ""})[0] == 200


def test_it_listens_on_this_machine_alone(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "127.0.1.1", "::1"}
    for address in others:
        with pytest.raises(OSError), socket.create_connection((str(address), server.server_port), timeout=1):  # noqa: PT011
            pass


def test_a_client_that_says_nothing_holds_nobody_up(server: ReviewServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port)) as silent:
        silent.sendall(b"POST /review HTTP/1.1\r\nHost: ")
        assert ask(server, "/labels")[0] == 200


def test_reviews_from_many_clients_at_once_are_whole_lines(server: ReviewServer) -> None:
    count = len(server.book.index)

    def review(place: int) -> None:
        assert ask(server, "/review", {"place": place, "action": "reject"})[0] == 200

    threads = [threading.Thread(target=review, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = read(server.book.index.run.folder / REVIEWS)
    assert {line["item_id"] for line in lines} == {key[0] for key in server.book.index.keys}
    assert len(lines) == count


def test_hostile_texts_are_served_as_data_without_what_controls_them_unseen(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\u202egnp.exe\u2066\x1b[31m\x00"
    run = run_of(tmp_path, [draw(hostile, 0, hostile, 1, 1)], {hostile: 1}, inputs={hostile: {hostile: hostile}})
    run.kept.write_bytes(b"")
    label = LabelIndex.of(run).label(0, {})
    shown = "</script><img src=x onerror=alert(1)>\ufffdgnp.exe\ufffd\ufffd[31m\ufffd"
    assert label["inputs"] == [[shown, shown]]
    assert label["item_id"] == label["accepted"][0]["trace"] == shown
    assert not any(character in to_line(label).decode() for character in "\u202e\u2066\x1b\x00")


def test_many_draws_of_a_label_come_a_few_at_a_time(tmp_path: Path) -> None:
    draws = [draw("a", number, f"Draw {number}.", 1 + number % 2, 1) for number in range(60)]
    run = run_of(tmp_path, draws, {"a": 1})
    run.kept.write_bytes(b"")
    index = LabelIndex.of(run)
    label = index.label(0, {})
    assert ([one["draw"] for one in label["accepted"]], label["more"]["accepted"]) == (list(range(0, 24, 2)), 18)
    later = index.label(0, {}, accepted_from=24)
    assert ([one["draw"] for one in later["accepted"]], later["more"]["accepted"]) == (list(range(48, 60, 2)), 0)
    assert [one["draw"] for one in later["rejected"]] == [one["draw"] for one in label["rejected"]]


@pytest.mark.slow
def test_a_hundred_thousand_items(tmp_path: Path) -> None:
    """Nothing but numbers is held of them, and a page of the list comes in a blink."""
    import tracemalloc

    count = 100_000
    labels = {f"item{number:06}": 1 + number % 3 for number in range(count)}
    texts = {item_id: {"text": f"Text of {item_id}, " + "so it goes on. " * 40} for item_id in labels}
    draws = [draw(item_id, number, "Some words. " * 40, 1 + number, label)
             for item_id, label in labels.items() for number in range(3)]  # fmt: skip
    run = run_of(tmp_path, draws, labels, inputs=texts)
    run.kept.write_bytes(b"")
    del draws, texts
    tracemalloc.start()
    began = time.perf_counter()
    index = LabelIndex.of(run)
    read_seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == count
    assert peak < 200 * 2**20  # the texts alone are 300 MB
    began = time.perf_counter()
    rows = index.rows({}, show="open", find="9999", after=50_000)
    label = index.label(count - 1, {})
    seconds = time.perf_counter() - began
    print(f"\nread in {read_seconds:.1f} s under tracemalloc, {peak >> 20} MB; a page and a label in {seconds:.3f} s")
    assert (rows["found"], len(rows["rows"])) == (19, 14)
    assert label["accepted"][0]["trace"].startswith("Some words.")
    assert seconds < 1


# --- the stage --------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def test_it_serves_until_it_is_interrupted(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / "traces"
    (folder / REVIEWS).unlink(missing_ok=True)
    with started(STAGE, folder, "--corpus", tmp_path / "copy" / "corpus") as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert address.hostname == "127.0.0.1"
        assert address.port is not None
        token = address.query.removeprefix("token=")
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
        headers = {TOKEN_HEADER: token, "Content-Type": "application/json"}
        connection.request("POST", "/review", json.dumps(REJECT), headers)
        assert connection.getresponse().status == 200
        with started(STAGE, folder, "--corpus", tmp_path / "copy" / "corpus") as second:
            assert second.wait(timeout=60) == 2
            assert second.stderr is not None
            assert "another process is writing it" in second.stderr.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == INTERRUPTED
        assert out == ""
        assert "1 reviews made; 1 labels are reviewed in" in err
        assert "Traceback" not in err
    assert [record["action"] for record in read(folder / REVIEWS)] == ["reject"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "RUN: missing"),
        (("gone",), "review: gone: holds no manifest.json"),
        (("gone", "--port", "70000"), "--port 70000"),
        (("gone", "--prot", "1"), "did you mean --port?"),
        (("one", "two"), "unrecognized arguments: two"),
    ],
)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused_line(run, tmp_path, *arguments)


def test_a_port_that_is_taken_is_said(run: Run, made: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be had" in run(made, "--port", port, status=2).err
