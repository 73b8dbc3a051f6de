"""The review page in a real browser: what is shown, keys, what is saved, and that hostile texts do nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raters.review_page.book import ReviewBook
from raters.review_page.label_index import LabelIndex
from raters.review_page.server import ReviewServer
from raters.reviews import REVIEWS
from raters.trace_runs import TraceRun
from tests.chromium import Tab, browser
from tests.small_corpora import PAIRWISE
from tests.small_runs import draw, run_of
from tests.small_training import write_trace_run
from tests.stage_runs import read

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hacked = 1; alert(1)</script>",
    "<img src=x onerror='window.hacked = 2; alert(2)'>",
    "</div></main><h1 id=fake>Fake</h1><form action=/review method=post><input name=place></form>",
    "<svg/onload=window.hacked=3><a href='javascript:window.hacked=4'>a</a>",
    "\u202edesrever\u202c \u2066isolated\u2069 \x1b[31m \x00 \u200b",
    "{{7*7}} ${window.hacked = 5} `${window.hacked = 6}` <!-- ",
    "<style>*{display:none!important}</style><link rel=stylesheet href=//evil.example/x.css>",
    "<iframe srcdoc='<script>parent.hacked = 7</script>'></iframe><base href=//evil.example/>",
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@contextmanager
def serving(run: TraceRun) -> Iterator[ReviewServer]:
    server = ReviewServer(ReviewBook(LabelIndex.of(run)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_trace_run(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[ReviewServer]:
    with serving(TraceRun.read(folder)) as found:
        yield found


def open_page(tab: Tab, server: ReviewServer) -> None:
    tab.log.clear()
    tab.requests.clear()
    tab.dialogs.clear()
    tab.send("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    tab.open("about:blank")
    tab.open(server.address, "document.querySelector('#label h2')")


def place(tab: Tab) -> int:
    return int(tab.run("current.place"))


def saved(tab: Tab, what: str) -> None:
    tab.wait(f"document.querySelector('#status').textContent.endsWith({json.dumps(what + '; saved')})")


def change(tab: Tab, field: str, value: str, event: str) -> None:
    tab.run(f"by('{field}').value = '{value}'; by('{field}').dispatchEvent(new Event('{event}'))")


def reviews(server: ReviewServer) -> list[dict[str, Any]]:
    path = server.book.index.run.folder / REVIEWS
    return read(path) if path.exists() else []


def test_items_labels_and_draws_stand_side_by_side(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    index = server.book.index
    text = tab.text()
    item_id = index.keys[0][0]
    record = {line["item_id"]: line for line in read(index.run.folder / "traces.jsonl")}[item_id]
    assert f"quality (1..3), label {record['label']} · label 1 of {len(index)}" in text
    assert index.run.corpus.item(index.run.place_of(item_id)).inputs["text"] in text
    accepted, rejected = (
        tab.run(f"[...document.querySelectorAll('.side.{side} .card .text')].map((card) => card.textContent)")
        for side in ("accepted", "rejected")
    )
    assert accepted == [record["trace"]]
    assert [trace[-3:] for trace in rejected] == [" 0.", " 2."]
    left, right = (
        tab.run(f"document.querySelector('.side.{side}').getBoundingClientRect().x")
        for side in ("accepted", "rejected")
    )
    assert left < right
    assert "kept by the run" in text
    assert tab.log == []
    assert all(url.startswith((f"http://127.0.0.1:{server.server_port}/", "about:")) for url in tab.requests)


def test_keys_do_everything(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    tab.press("1")
    tab.press("Enter")
    saved(tab, "chosen")
    assert place(tab) == 1
    tab.press("x")
    saved(tab, "all rejected")
    assert place(tab) == 2
    tab.press("ArrowRight")
    tab.press("ArrowRight")  # the first rejected draw
    tab.press("Enter")
    tab.wait("document.querySelector('#status').className === 'wrong'")
    assert "its verdict is not the person's label" in tab.text()
    tab.press("e")
    tab.wait("document.activeElement.tagName === 'TEXTAREA'")
    tab.run("document.activeElement.select()")
    tab.type("It says more than that, x, e, u and j are only letters here.\nSecond line.")
    tab.press("Enter", ctrl=True)
    saved(tab, "corrected")
    assert place(tab) == 3
    tab.press("k")
    tab.wait("current.place === 2")
    assert tab.run("document.querySelector('.corrected .text').textContent").startswith("It says more")
    tab.press("k")
    tab.wait("current.place === 1")
    tab.press("u")
    saved(tab, "as the run kept it")
    assert place(tab) == 1
    tab.press("j")
    tab.wait("current.place === 2")
    tab.press("n")
    tab.wait("current.place === 3")
    tab.press("?")
    assert tab.run("!document.querySelector('#help').hidden")
    found = [(line["action"], line["draw"], line["trace"]) for line in reviews(server)]
    text = "It says more than that, x, e, u and j are only letters here.\nSecond line."
    assert found == [("choose", 1, None), ("reject", None, None), ("correct", 0, text), ("undo", None, None)]
    states = tab.run("[...document.querySelector('#show').options].map((option) => option.textContent)")
    count = len(server.book.index)
    assert states[:3] == [f"all labels ({count})", f"not reviewed ({count - 2})", "reviewed (2)"]
    assert tab.log == []


def test_leaving_a_correction_writes_nothing(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    tab.press("e")
    tab.wait("document.activeElement.tagName === 'TEXTAREA'")
    tab.type("never mind")
    tab.press("Escape")
    tab.wait("!document.querySelector('textarea')")
    assert "never mind" not in tab.text()
    tab.press("e")
    tab.wait("document.activeElement.tagName === 'TEXTAREA'")
    tab.run("document.activeElement.select()")
    tab.type("so <rating>3</rating>")
    tab.press("Enter", ctrl=True)
    tab.wait("document.querySelector('#status').className === 'wrong'")
    assert "the trace holds <rating>" in tab.text()
    assert (
        tab.run("document.querySelector('textarea').value") == "so <rating>3</rating>"
    )  # what was typed is still there
    tab.press("Escape")
    assert reviews(server) == []


def test_a_click_elsewhere_loses_no_correction(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    tab.press("e")
    tab.wait("document.activeElement.tagName === 'TEXTAREA'")
    tab.type("half a thou")
    for click in ("document.querySelector('#rows li:nth-child(4) button').click()", "by('reject').click()",
                  "by('find').value = 'nothing'; by('find').dispatchEvent(new Event('input'))"):  # fmt: skip
        tab.run("say('')")
        tab.run(click)
        tab.wait("document.querySelector('#status').textContent === 'save the correction or leave it first'")
        assert tab.run("document.activeElement.value").endswith("half a thou")
    assert (place(tab), reviews(server)) == (0, [])
    tab.type("ght.")
    tab.press("Enter", ctrl=True)
    saved(tab, "corrected")
    assert [line["trace"][-15:] for line in reviews(server)] == ["half a thought."]


def test_finding_and_clicking(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    wanted = server.book.index.keys[5][0]
    tab.press("/")
    tab.type(wanted)
    tab.wait("rows.length === 1 && current.place === 5")
    tab.run("document.querySelector('.choose').click()")
    saved(tab, "chosen")
    assert [line["item_id"] for line in reviews(server)] == [wanted]
    change(tab, "find", "nothing", "input")
    tab.wait("document.querySelector('#label').textContent === 'No such label.'")


def test_a_server_that_is_gone_is_said(tab: Tab, folder: Path) -> None:
    with serving(TraceRun.read(folder)) as server:
        open_page(tab, server)
        gone = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        tab.send("Network.emulateNetworkConditions", **gone)
        tab.press("x")
        tab.wait("document.querySelector('#status').className === 'wrong'")
        assert "no answer: is `review` still running?" in tab.text()
        assert place(tab) == 0
        tab.send("Network.emulateNetworkConditions", **{**gone, "offline": False})
        tab.press("x")
        saved(tab, "all rejected")


def test_hostile_texts_do_nothing(tab: Tab, tmp_path: Path) -> None:
    labels = {f"{number} {text}": 1 for number, text in enumerate(HOSTILE)}
    draws = [draw(item_id, number, text, 1 + number, 1, answer=text, model=text, flags=[text] if number == 0 else [])
             for item_id, text in zip(labels, HOSTILE, strict=True) for number in range(2)]  # fmt: skip
    inputs = {item_id: {text: text} for item_id, text in zip(labels, HOSTILE, strict=True)}
    run = run_of(tmp_path, draws, labels, inputs=inputs)
    run.kept.write_bytes(b"")
    with serving(run) as server:
        open_page(tab, server)
        for number, text in enumerate(HOSTILE):
            tab.wait(f"current.place === {number}")
            found = tab.run("[...document.querySelectorAll('.text')].map((one) => one.textContent)")
            plain = "".join(character for character in text if character.isprintable())
            for shown in found:
                assert "".join(character for character in shown if character != "\ufffd") == plain
            assert not any(character in "".join(found) for character in "\u202e\u2066\x1b\x00\u200b")
            tab.press("e")
            tab.wait("document.activeElement.tagName === 'TEXTAREA'")
            tab.press("Escape")
            tab.press("j")
        assert tab.run("window.hacked") is None
        assert (
            tab.run("document.querySelectorAll('img, iframe, form, svg, base, #fake, main script, main style').length")
            == 0
        )
        assert tab.dialogs == []
        assert tab.log == []
        assert not [url for url in tab.requests if "evil" in url or url.endswith("/x")]
        tab.press("x")
        saved(tab, "all rejected")


def test_the_policy_stops_what_a_script_would_try(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    for attempt in (
        "document.body.innerHTML = '<img src=x onerror=alert(1)>'",
        "new Function('window.hacked = 1')()",
        "document.createElement('script').text = 'window.hacked = 2'",
    ):
        blocked = tab.run(f"(() => {{ try {{ {attempt}; return 'done' }} catch (error) {{ return error.name }} }})()")
        assert blocked in ("TypeError", "EvalError"), attempt
    for url in ("http://evil.example/", "//evil.example/x.js"):
        assert tab.run(f"fetch('{url}').then(() => 'done', (error) => error.name)") == "TypeError"
    assert tab.run("window.hacked") is None


def test_a_page_of_another_origin_can_neither_read_nor_write(tab: Tab, server: ReviewServer) -> None:
    """Even if it had learned the token."""

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>evil</title>")

        def log_message(self, format: str, *values: object) -> None:
            pass

    evil = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    try:
        tab.open(f"http://127.0.0.1:{evil.server_port}/", "document.title === 'evil'")
        ours, token = f"http://127.0.0.1:{server.server_port}", server.token
        body = json.dumps({"place": 0, "action": "reject"})
        for request in (
            f"fetch('{ours}/labels?token={token}').then((answer) => answer.text())",
            f"fetch('{ours}/review?token={token}', {{method: 'POST', body: '{body}', mode: 'no-cors'}})"
            ".then((answer) => answer.type)",
            f"fetch('{ours}/review', {{method: 'POST', body: '{body}', headers: {{'X-Judgeseye-Token': '{token}', "
            "'Content-Type': 'application/json'}}).then((answer) => answer.text())",
        ):
            found = tab.run(f"{request}.catch((error) => error.name)")
            assert found in ("TypeError", "opaque"), found
        framed = (
            "new Promise((done) => { const frame = document.createElement('iframe'); "
            f"frame.src = '{ours}/?token={token}'; frame.onload = () => {{ try {{ "
            "done(frame.contentDocument?.title ?? 'closed') } catch (error) { done('closed') } }; "
            "document.body.append(frame) })"
        )
        assert tab.run(framed) == "closed"
    finally:
        evil.shutdown()
        evil.server_close()
    assert reviews(server) == []


def test_a_pair_in_exchanged_order_says_so(tab: Tab, tmp_path: Path) -> None:
    with serving(TraceRun.read(write_trace_run(tmp_path, PAIRWISE))) as server:
        open_page(tab, server)
        for _ in range(6):
            if "it saw the two texts exchanged" in tab.text():
                break
            tab.press("j")
            tab.wait("true")
        assert "it saw the two texts exchanged" in tab.text()


def test_narrow_and_dark(tab: Tab, server: ReviewServer) -> None:
    open_page(tab, server)
    light = tab.run("getComputedStyle(document.body).backgroundColor")
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run("getComputedStyle(document.body).backgroundColor") != light
    for width in (320, 390, 800):
        tab.send("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)
        assert tab.run("document.documentElement.scrollWidth <= window.innerWidth"), width
    tab.send("Emulation.setEmulatedMedia", features=[])


def test_pages_of_the_list(tab: Tab, tmp_path: Path) -> None:
    labels = {f"item{number:03}": 1 for number in range(120)}
    run = run_of(tmp_path, [draw(item_id, 0, "Words.", 1, 1) for item_id in labels], labels)
    run.kept.write_bytes(b"")
    with serving(run) as server:
        open_page(tab, server)
        assert tab.run("document.querySelector('#where').textContent") == "1–50 of 120"
        tab.run("document.querySelector('#after').click()")
        tab.wait("document.querySelector('#where').textContent === '51–100 of 120'")
        tab.run("document.querySelectorAll('#rows button')[49].click()")
        tab.wait("current.place === 99")
        tab.press("x")
        saved(tab, "all rejected")
        assert place(tab) == 100  # over the end of the page
        assert tab.run("document.querySelector('#where').textContent") == "101–120 of 120"
        tab.press("k")
        tab.wait("current.place === 99")
        change(tab, "show", "reviewed", "change")
        tab.wait("document.querySelector('#where').textContent === '1–1 of 1'")
