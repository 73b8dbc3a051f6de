"""Texts as vectors: TF-IDF, an OpenAI-compatible endpoint, or sentence-transformers, behind one small protocol."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raters.journal import Journal, sha256_of
from raters.models.failures import error_text
from raters.models.openai import OpenAIModel
from raters.models.protocol import one_line
from raters.records import ConfigError, DataError, ModelAccessError, ModelError, ModelRequestError, shown

if TYPE_CHECKING:
    from openai import OpenAI

EMBEDDERS = ("tfidf", "openai/<model>", "sentence-transformers/<name or folder>")
BATCH = 256
"""Texts of one request for embeddings; OpenAI takes 2,048, other servers fewer."""

_MOST_TERMS = 4096
# Scripts that do not part words give one word a character: Thai to Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = rf"(?u)[{_UNSPACED}]|[^\W_{_UNSPACED}]+"


class Embedder(Protocol):
    """A way to turn texts into vectors whose inner product is their likeness.

    Attributes:
        name: As records name it: the spec it was opened with.
    """

    @property
    def name(self) -> str:
        """For records."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return (texts, width) vectors of unit length; all zero for a text that is blank or has no known word.

        Raises:
            ModelAccessError: The model cannot be used at all.
            ModelError: The model failed, or its answer cannot be used.
        """
        ...


def open_embedder(spec: str, base_url: str | None = None) -> Embedder:
    """Return the embedder that a spec names, one of `EMBEDDERS`.

    Args:
        spec: `tfidf`, or `provider/name`.
        base_url: Endpoint of `openai/...`; OPENAI_BASE_URL if None.

    Raises:
        ConfigError: If the spec is none of them.
        ModelAccessError: If a model cannot be loaded, or there is neither key nor endpoint.
    """
    provider, _, name = spec.partition("/")
    if spec == "tfidf":
        return TfidfEmbedder()
    if provider == "openai" and name.strip():
        return OpenAIEmbedder(name, base_url=base_url)
    if provider == "sentence-transformers" and name.strip():
        return SentenceTransformersEmbedder(name)
    raise ConfigError(f"embedder {one_line(spec)!r}: not an embedder; give one of {', '.join(EMBEDDERS)}")


class TfidfEmbedder:
    """Words and pairs of neighbouring words, weighted by TF-IDF with sublinear term frequency.

    The vocabulary is that of the texts themselves, the 4,096 most frequent terms of them: vectors of one call cannot
    be compared with those of another.
    """

    name = "tfidf"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return (texts, terms) vectors; see `Embedder`. Without any word there is one term, which no text has."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), token_pattern=_WORD, max_features=_MOST_TERMS, dtype=np.float64
        )
        try:
            return np.asarray(vectorizer.fit_transform(texts).toarray(), np.float64)
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            return np.zeros((len(texts), 1))


class SentenceTransformersEmbedder:
    """A model of the sentence-transformers library, in process.

    Attributes:
        name: `sentence-transformers/NAME`.
    """

    def __init__(self, name: str) -> None:
        """Load the model.

        Args:
            name: Name on the hub (those of the library's own organisation need no prefix), or a folder.

        Raises:
            ModelAccessError: If the library is not installed or the model cannot be loaded.
        """
        self.name = f"sentence-transformers/{name}"
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ModelAccessError(
                f"{self.name}: needs the sentence-transformers package; pip install 'judgeseye[embeddings]', "
                "or take the embedder tfidf"
            ) from error
        try:
            safe = {"use_safetensors": True}  # other weights are pickles, which may run anything
            self._model = SentenceTransformer(name, trust_remote_code=False, model_kwargs=safe)
        except Exception as error:  # hub, files and weights each fail in their own way
            raise ModelAccessError(
                f"{self.name}: cannot be loaded ({one_line(str(error))}); check its name or folder"
            ) from error

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return (texts, width) vectors; see `Embedder`."""
        wanted = _different(texts)
        try:
            found = self._model.encode(wanted, convert_to_numpy=True, show_progress_bar=False) if wanted else []
        except RuntimeError as error:  # memory, broken weights
            raise ModelError(f"{self.name}: failed ({one_line(str(error))}); try fewer or shorter texts") from error
        return _unit_rows(texts, wanted, np.asarray(found, np.float64), self.name)


class OpenAIEmbedder(OpenAIModel):
    """A model behind an OpenAI-compatible `/v1/embeddings`; address, key and refusals are those of the chat model.

    Failures that pass are retried by the openai client itself.

    Attributes:
        name: `openai/NAME`.
    """

    def __init__(
        self, name: str, *, base_url: str | None = None, request_timeout_seconds: float = 120.0, max_retries: int = 3
    ) -> None:
        """Read address and key; nothing is sent yet. Arguments and errors are those of `OpenAIModel`."""
        super().__init__(
            name, base_url=base_url, request_timeout_seconds=request_timeout_seconds, max_retries=max_retries
        )
        self.name = self.spec

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return (texts, width) vectors; see `Embedder`. A text that stands twice is sent once, a blank one never."""
        try:
            import openai
        except ImportError as error:
            raise ModelAccessError(f"{self.spec}: needs the openai package; pip install openai") from error
        wanted = _different(texts)
        rows: list[NDArray[np.float64]] = []
        timeout = openai.Timeout(self._request_timeout_seconds, connect=self._connect_timeout_seconds)
        with openai.OpenAI(
            api_key=self._key or "none", base_url=self._base_url, max_retries=self._max_retries, timeout=timeout
        ) as client:
            for start in range(0, len(wanted), BATCH):
                rows += self._batch(client, wanted[start : start + BATCH])
        widths = sorted({len(row) for row in rows})
        if len(widths) > 1:
            raise ModelError(f"{self.spec}: {self._place} sent vectors of {widths} numbers; they must all be alike")
        return _unit_rows(texts, wanted, np.array(rows, np.float64), f"{self.spec}: {self._place}")

    def _batch(self, client: OpenAI, texts: Sequence[str]) -> list[NDArray[np.float64]]:
        import openai

        place = f"{self.spec}: {self._place}"
        try:
            # The client would ask for base64, which not every server knows.
            answer = client.embeddings.with_raw_response.create(
                model=self._name, input=list(texts), encoding_format="float"
            )
        except openai.APIConnectionError as error:  # a timeout is one
            # Class names, because openai runs on httpx or on httpx2.
            cause = error.__cause__ or error
            reason = self._clean(str(cause)) or type(cause).__name__
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                raise ModelAccessError(
                    f"{self.spec}: no server answers at {self._place} ({reason}); start it, or check --base-url"
                ) from error
            raise ModelError(f"{place} failed ({reason}); try again later") from error
        except openai.APIStatusError as error:
            refusal = self._refusal(error)
            if isinstance(refusal, ModelAccessError):
                raise refusal from None  # the chain would show the server's words as they came
            if isinstance(refusal, ModelRequestError):
                words = f"{error.status_code} {self._clean(error_text(error.body))}".strip()
                raise ModelRequestError(
                    f"{place} refused the texts ({words}); check that it makes embeddings, or shorten them"
                ) from None
            raise ModelError(f"{place} failed ({refusal}); try again later") from None
        try:
            payload = json.loads(answer.text)
        except (ValueError, RecursionError) as error:
            told = self._clean(answer.text)[:80]
            raise ModelError(f"{place} sent an answer that is not JSON ({told!r}); check --base-url") from error
        return self._vectors(payload, len(texts))

    def _vectors(self, payload: Any, count: int) -> list[NDArray[np.float64]]:
        """Return the vectors of an answer in the order of the texts, which their `index` says."""
        place = f"{self.spec}: {self._place}"
        data = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
            # Gateways report a failure of the server behind them as 200 with an `error`.
            failure = payload.get("error") if isinstance(payload, dict) else None
            told = self._clean(json.dumps(failure)) if failure else "an answer without data"
            raise ModelError(f"{place} sent no embeddings ({told}); check that the model makes them")
        places = [entry.get("index", at) for at, entry in enumerate(data)]
        if places != [*range(count)] and sorted(map(repr, places)) != sorted(map(repr, range(count))):
            raise ModelError(
                f"{place} sent {len(data)} embeddings for {count} texts, or of other texts; try another model"
            )
        vectors: list[NDArray[np.float64]] = [np.empty(0)] * count
        for at, entry in zip(places, data, strict=True):
            vector = _numbers(entry.get("embedding"))
            if vector is None or not len(vector) or not np.isfinite(vector).all():
                told = self._clean(json.dumps(entry.get("embedding")))[:80]
                raise ModelError(
                    f"{place} sent an embedding that is no list of finite numbers ({told}); try another model"
                )
            vectors[at] = vector
        return vectors


def _numbers(embedding: object) -> NDArray[np.float64] | None:
    """Return an embedding as numbers: a list of them, or 32-bit floats in base64; None if it is neither."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float64)
        if isinstance(embedding, list) and all(type(value) in (int, float) for value in embedding):
            return np.array(embedding, np.float64)
    except (binascii.Error, ValueError, OverflowError):
        return None
    return None


def _different(texts: Sequence[str]) -> list[str]:
    """Return the different texts that are not blank, as UTF-8 can hold them."""
    return list(dict.fromkeys(_sendable(text) for text in texts if text.strip()))


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _unit_rows(
    texts: Sequence[str], wanted: Sequence[str], found: NDArray[np.float64], where: str
) -> NDArray[np.float64]:
    """Return (texts, width) rows of unit length from those of the different texts.

    Raises:
        ModelError: If there are not as many rows as texts, or a number is not finite.
    """
    if not wanted:
        return np.zeros((len(texts), 1))
    if found.ndim != 2 or len(found) != len(wanted) or not np.isfinite(found).all():
        raise ModelError(f"{where} gave vectors of shape {found.shape} for {len(wanted)} texts; try another model")
    largest = np.abs(found).max(axis=1, keepdims=True)
    scaled = found / np.where(largest > 0, largest, 1.0)  # or squares of very large numbers would overflow
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    rows = dict(zip(wanted, scaled / np.where(lengths > 0, lengths, 1.0), strict=True))
    nothing = np.zeros(found.shape[1])
    return np.array([rows.get(_sendable(text), nothing) for text in texts])


@dataclass
class KeptEmbedder:
    """An embedder whose vectors are kept in a file, so that no session pays for a text again.

    Attributes:
        embedder: That is asked for texts which are not in the file. A text's vector may not depend on other texts.
        path: The file.
    """

    embedder: Embedder
    path: Path

    @property
    def name(self) -> str:
        """The embedder's."""
        return self.embedder.name

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return (texts, width) vectors; see `Embedder`.

        Raises:
            DataError: If the file holds something else.
        """
        journal = Journal(self.path, prepare=lambda: self.path.parent.mkdir(parents=True, exist_ok=True))
        known: dict[str, list[float]] = {}
        for line_number, _, record in journal.recover():
            if not isinstance(record.get("key"), str) or not isinstance(record.get("vector"), list):
                raise DataError(f"{self.path} line {line_number}: {shown(record)} is no vector; remove the line")
            known[record["key"]] = record["vector"]
        keys = [sha256_of(f"{self.name}\0{text}") for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            vectors = self.embedder.embed(list(missing.values())).tolist()
            journal.append([{"key": key, "vector": vector} for key, vector in zip(missing, vectors, strict=True)])
            known |= dict(zip(missing, vectors, strict=True))
            journal.close()
        return np.array([known[key] for key in keys], np.float64)
