"""Embedders: TF-IDF by hand, an OpenAI-compatible endpoint behind a real HTTP server, and specs."""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raters.embedders import BATCH, Embedder, KeptEmbedder, OpenAIEmbedder, open_embedder
from raters.records import ConfigError, DataError, ModelAccessError, ModelError, ModelRequestError

# --- tf-idf --------------------------------------------------------------------------------------------------


def tfidf(*texts: str) -> NDArray[np.float64]:
    return open_embedder("tfidf").embed(texts)


def test_tfidf_by_hand() -> None:
    """Terms a, b, "a b" of "a b" and a, c, "a a", "a c" of "a a c"; two texts.

    idf is 1 + ln(3 / 2) for a term of one text and 1 for "a", which is in both; tf of "a" in the second text is
    1 + ln 2. So the inner product is (1 + ln 2) / (|x| |y|), with w = 1 + ln 1.5: |x|^2 = 1 + 2 w^2 and
    |y|^2 = (1 + ln 2)^2 + 3 w^2.
    """
    rows = tfidf("a b", "a a c")
    rare = 1 + math.log(1.5)
    expected = (1 + math.log(2)) / math.sqrt((1 + 2 * rare**2) * ((1 + math.log(2)) ** 2 + 3 * rare**2))
    assert rows.shape == (2, 6)
    assert rows[0] @ rows[1] == pytest.approx(expected)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)


def test_tfidf_reads_every_script() -> None:
    rows = tfidf("我喜欢自行车", "我不喜欢自行车", "Фонарь сломан", "фонарь починен", "ماء بارد", "ماء حار")
    likeness = rows @ rows.T
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert likeness[first, second] > 0.1
    assert likeness[0, 2] == likeness[2, 4] == 0


@pytest.mark.parametrize("texts", [[], [""], ["", "  "], ["!!!", "…"], ["_"]])
def test_texts_without_words_have_zero_rows(texts: list[str]) -> None:
    rows = tfidf(*texts)
    assert rows.shape == (len(texts), 1)
    assert not rows.any()


def test_a_text_without_words_among_others_has_a_zero_row() -> None:
    rows = tfidf("No price is named.", "", "?!")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 0])


def test_one_text_and_half_a_surrogate_pair_are_embedded() -> None:
    assert np.linalg.norm(tfidf("word")[0]) == pytest.approx(1)
    assert np.isfinite(tfidf("a \ud800 b", "c")).all()


def test_a_large_vocabulary_is_cut() -> None:
    assert tfidf(*(f"word{place} and common" for place in range(6000))).shape[1] == 4096


# --- an OpenAI-compatible endpoint ---------------------------------------------------------------------------


@dataclass
class Reply:
    """What the server does with a request: a status with OpenAI's error body, raw bytes, or embeddings."""

    status: int = 200
    message: str = ""
    code: str | None = None
    body: bytes | None = None
    drop: bool = False


def vector_of(text: str) -> list[float]:
    """Return three numbers that a text decides, none of unit length."""
    return [float(len(text)), 1.0, float(sum(map(ord, text)) % 7)]


def payload(body: dict[str, Any], vector: Callable[[str], Any] = vector_of) -> dict[str, Any]:
    """Return an answer field by field as OpenAI sends it, in the encoding that was asked for."""
    data = []
    for index, text in enumerate(body["input"]):
        embedding = vector(text)
        if body.get("encoding_format") == "base64":
            embedding = base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = sum(len(text.split()) for text in body["input"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


Script = Callable[[dict[str, Any], int], Reply | dict[str, Any]]


@dataclass
class Served:
    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def serving(script: Script) -> Iterator[Served]:
    served = Served("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(body)
            served.keys.append(self.headers.get("Authorization", ""))
            reply: Reply | dict[str, Any] = Reply(404, f"Invalid URL (POST {self.path})")
            if self.path == "/v1/embeddings":
                reply = script(body, len(served.requests) - 1)
            if isinstance(reply, dict):
                reply = Reply(body=json.dumps(reply).encode())
            if reply.drop:
                self.close_connection = True
                return
            error = {"message": reply.message, "type": "invalid_request_error", "param": None, "code": reply.code}
            raw = reply.body if reply.body is not None else json.dumps({"error": error}).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def embed(script: Script, *texts: str) -> NDArray[np.float64]:
    with serving(script) as served:
        return open_embedder("openai/embedder", served.base_url).embed(texts)


def failure(script: Script, *texts: str, max_retries: int = 0) -> ModelError:
    """Return the error that embedding ends with, after checking that it is one line and names model and place."""
    with serving(script) as served:
        embedder = OpenAIEmbedder("embedder", base_url=served.base_url, max_retries=max_retries)
        with pytest.raises(ModelError) as caught:
            embedder.embed(texts or ("a", "bb"))
        assert str(caught.value).startswith(f"openai/embedder: {served.base_url} ")
        assert "\n" not in str(caught.value)
    return caught.value


def unit(text: str) -> NDArray[np.float64]:
    vector = np.array(vector_of(text))
    return np.asarray(vector / math.hypot(*vector))


def test_vectors_are_those_of_the_server_at_unit_length() -> None:
    rows = embed(lambda body, count: payload(body), "a", "bb", "ccc")
    np.testing.assert_allclose(rows, [unit("a"), unit("bb"), unit("ccc")])


def test_a_request_asks_for_floats_as_the_api_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with serving(lambda body, count: payload(body)) as served:
        monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
        open_embedder("openai/org/embedder").embed(["a"])
    assert served.requests == [{"model": "org/embedder", "input": ["a"], "encoding_format": "float"}]
    assert served.keys == ["Bearer sk-test"]


def test_texts_go_in_batches_once_each_and_blank_ones_not_at_all() -> None:
    texts = [f"text {place}" for place in range(2 * BATCH + 3)]
    with serving(lambda body, count: payload(body)) as served:
        rows = open_embedder("openai/embedder", served.base_url).embed([*texts, "", " \n", *texts])
    assert [len(request["input"]) for request in served.requests] == [BATCH, BATCH, 3]
    assert [text for request in served.requests for text in request["input"]] == texts
    np.testing.assert_allclose(rows[0], unit("text 0"))
    np.testing.assert_array_equal(rows[: len(texts)], rows[len(texts) + 2 :])
    assert not rows[len(texts) : len(texts) + 2].any()


def test_kept_vectors_are_not_asked_for_again(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    class Counting:
        name = "counting"

        def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
            asked.append(list(texts))
            return np.array([[float(len(text)), 0.5] for text in texts])

    path = tmp_path / "embeddings.jsonl"
    first = KeptEmbedder(Counting(), path).embed(["a", "bbb", "a"])
    assert first.tolist() == [[1.0, 0.5], [3.0, 0.5], [1.0, 0.5]]
    with path.open("ab") as file:
        file.write(b'{"key": "torn')  # as a crash leaves it
    again = KeptEmbedder(Counting(), path).embed(["bbb", "cc", "a"])
    assert again.tolist() == [[3.0, 0.5], [2.0, 0.5], [1.0, 0.5]]
    assert asked == [["a", "bbb"], ["cc"]]
    path.write_text('{"key": 7}\n')
    with pytest.raises(DataError, match="line 1"):
        KeptEmbedder(Counting(), path).embed(["a"])


def test_nothing_is_sent_for_nothing() -> None:
    with serving(lambda body, count: payload(body)) as served:
        embedder = open_embedder("openai/embedder", served.base_url)
        assert embedder.embed([]).shape == (0, 1)
        assert not embedder.embed(["", " "]).any()
    assert served.requests == []


def test_half_a_surrogate_pair_can_be_sent() -> None:
    assert np.linalg.norm(embed(lambda body, count: payload(body), "a \ud800")[0]) == pytest.approx(1)


def test_the_index_decides_the_order() -> None:
    def shuffled(body: dict[str, Any], count: int) -> dict[str, Any]:
        answer = payload(body)
        answer["data"] = [answer["data"][place] for place in (2, 0, 1)]
        return answer

    np.testing.assert_allclose(embed(shuffled, "a", "bb", "ccc"), [unit("a"), unit("bb"), unit("ccc")])


def test_without_an_index_the_order_stands() -> None:
    def bare(body: dict[str, Any], count: int) -> dict[str, Any]:
        return {"data": [{"embedding": vector_of(text)} for text in body["input"]]}

    np.testing.assert_allclose(embed(bare, "a", "bb"), [unit("a"), unit("bb")])


def test_a_server_that_sends_base64_all_the_same_is_read() -> None:
    rows = embed(lambda body, count: payload({**body, "encoding_format": "base64"}), "a", "bb")
    np.testing.assert_allclose(rows, [unit("a"), unit("bb")], rtol=1e-6)


def test_a_zero_and_a_huge_vector() -> None:
    rows = embed(lambda body, count: payload(body, lambda text: [1e300, 1e300] if text == "a" else [0, 0]), "a", "b")
    np.testing.assert_allclose(rows, [[math.sqrt(0.5), math.sqrt(0.5)], [0, 0]])


def test_a_failure_that_passes_is_tried_again() -> None:
    def second_time(body: dict[str, Any], count: int) -> Reply | dict[str, Any]:
        return payload(body) if count else Reply(500, "The server had an error.")

    with serving(second_time) as served:
        rows = open_embedder("openai/embedder", served.base_url).embed(["a"])
    assert len(served.requests) == 2
    np.testing.assert_allclose(rows, [unit("a")])


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401, "Incorrect API key.", "invalid_api_key"), ModelAccessError, "refused the key (401 Incorrect"),
        (Reply(403, "Not allowed."), ModelAccessError, "refused the key (403 Not allowed.)"),
        (Reply(404, "No model `embedder`.", "model_not_found"), ModelAccessError, "does not serve this model"),
        (Reply(429, "You exceeded your quota.", "insufficient_quota"), ModelAccessError, "quota is used up"),
        (Reply(400, "Above 8192 tokens."), ModelRequestError, "refused the texts (400 Above 8192 tokens.)"),
        (Reply(429, "Slow down."), ModelError, "failed (429 Slow down.); try again later"),
        (Reply(500, "Overloaded\nby\x1b[31m far."), ModelError, "failed (500 Overloaded by"),
        (Reply(body=b"<html>"), ModelError, "sent an answer that is not JSON ('<html>')"),
        (Reply(body=b""), ModelError, "not JSON"),
        (Reply(body=b"[" * 100_000), ModelError, "not JSON"),
        (Reply(drop=True), ModelError, "failed ("),
    ],
)  # fmt: skip
def test_refusals(reply: Reply, kind: type[ModelError], words: str) -> None:
    error = failure(lambda body, count: reply)
    assert type(error) is kind
    assert words in str(error)


def one_vector(embedding: Any) -> Script:
    """Return a script whose second vector is this."""
    return lambda body, count: payload(body, lambda text: [1.0, 2.0] if text == "a" else embedding)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda body, count: {}, "sent no embeddings (an answer without data)"),
        (lambda body, count: {"error": {"message": "No backend."}}, "No backend."),
        (lambda body, count: {"data": None}, "without data"),
        (lambda body, count: {"data": [1, 2]}, "without data"),
        (lambda body, count: {**payload(body), "data": []}, "sent 0 embeddings for 2 texts"),
        (lambda body, count: {"data": payload(body)["data"][:1]}, "sent 1 embeddings for 2 texts"),
        (lambda body, count: {"data": [{**entry, "index": 0} for entry in payload(body)["data"]]}, "for 2 texts"),
        (lambda body, count: {"data": [{**entry, "index": [9]} for entry in payload(body)["data"]]}, "for 2 texts"),
        (lambda body, count: {"data": [{"index": 0}, {"index": 1}]}, "no list of finite numbers (null)"),
        (one_vector([1.0, math.nan]), "no list of finite numbers ([1.0, NaN])"),
        (one_vector([1.0, math.inf]), "no list of finite numbers"),
        (one_vector([1.0, None]), "no list of finite numbers"),
        (one_vector([1.0, "2"]), "no list of finite numbers"),
        (one_vector([True, False]), "no list of finite numbers"),
        (one_vector([[1.0], [2.0]]), "no list of finite numbers"),
        (one_vector([]), "no list of finite numbers"),
        (one_vector([10**400, 1]), "no list of finite numbers"),
        (one_vector("not base64!"), "no list of finite numbers"),
        (one_vector("AAAA"), "no list of finite numbers"),
        (one_vector([1.0, 2.0, 3.0]), "sent vectors of [2, 3] numbers"),
    ],
)
def test_answers_that_cannot_be_used(script: Script, words: str) -> None:
    error = failure(script)
    assert type(error) is ModelError
    assert words in str(error)


def test_batches_of_other_widths_are_refused() -> None:
    texts = [f"text {place}" for place in range(BATCH + 1)]
    error = failure(lambda body, count: payload(body, lambda text: [1.0] * (2 + count)), *texts)
    assert "sent vectors of [2, 3] numbers" in str(error)


def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-secret")
    for status in (400, 401, 500):
        told = str(failure(lambda body, count, status=status: Reply(status, "Wrong key sk-secret-secret.")))
        assert "sk-secret-secret" not in told
        assert "[key]" in told


def test_no_server_is_said_at_once() -> None:
    with serving(lambda body, count: payload(body)) as served:
        gone = served.base_url
    with pytest.raises(ModelAccessError, match=f"openai/embedder: no server answers at {gone} "):
        OpenAIEmbedder("embedder", base_url=gone, max_retries=0).embed(["a"])


def test_neither_key_nor_address() -> None:
    with pytest.raises(ModelAccessError, match="OPENAI_API_KEY is not set"):
        open_embedder("openai/embedder")


# --- sentence-transformers and specs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["", "tf-idf", "openai", "openai/", "sentence-transformers/ ", "hf/x", "tfidf/x", "a\nb"]
)
def test_specs_that_name_no_embedder(spec: str) -> None:
    with pytest.raises(ConfigError, match="give one of tfidf, openai/<model>, sentence-transformers/") as caught:
        open_embedder(spec)
    assert "\n" not in str(caught.value)


def test_embedders_are_called_by_their_spec() -> None:
    embedders: list[Embedder] = [open_embedder("tfidf"), open_embedder("openai/a/b", "http://localhost:1/v1")]
    assert [embedder.name for embedder in embedders] == ["tfidf", "openai/a/b"]


def test_sentence_transformers_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        ModelAccessError, match=r"sentence-transformers/m: needs .*pip install 'judgeseye\[embeddings\]'"
    ):
        open_embedder("sentence-transformers/m")


class FakeSentenceTransformer:
    """Answers as the real class does: float32 rows of any length, one a text; OSError for an unknown model."""

    def __init__(self, model_name_or_path: str, *, trust_remote_code: bool, model_kwargs: dict[str, bool]) -> None:
        assert not trust_remote_code
        assert model_kwargs == {"use_safetensors": True}
        if model_name_or_path != "some/folder":
            raise OSError(f"{model_name_or_path} is not a local folder\nand is not a valid model identifier")

    def encode(self, sentences: list[str], *, convert_to_numpy: bool, show_progress_bar: bool) -> NDArray[np.float32]:
        assert convert_to_numpy
        assert not show_progress_bar
        if "broken" in sentences:
            raise RuntimeError("out of memory")
        return np.array([vector_of(text) for text in sentences], np.float32)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeSentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.mark.usefixtures("_fake")
def test_sentence_transformers_vectors_at_unit_length() -> None:
    embedder = open_embedder("sentence-transformers/some/folder")
    rows = embedder.embed(["a", "", "bb", "a"])
    np.testing.assert_allclose(rows, [unit("a"), [0, 0, 0], unit("bb"), unit("a")], rtol=1e-6)
    assert embedder.embed([]).shape == (0, 1)
    assert embedder.name == "sentence-transformers/some/folder"


@pytest.mark.usefixtures("_fake")
def test_sentence_transformers_failures_are_one_line() -> None:
    with pytest.raises(
        ModelAccessError, match=r"^sentence-transformers/x: cannot be loaded \(x is not a local folder and"
    ):
        open_embedder("sentence-transformers/x")
    with pytest.raises(ModelError, match=r"^sentence-transformers/some/folder: failed \(out of memory\)"):
        open_embedder("sentence-transformers/some/folder").embed(["broken"])
