"""Models behind an OpenAI-compatible `/v1/chat/completions`: OpenAI, vLLM, llama.cpp, Ollama, gateways.

One request per seed, or several samples of one where they are asked for. Servers differ in what they leave out
(`usage`, `content`, `finish_reason`) and in what they call the reasoning, so answers are read from plain JSON and
nothing is taken for granted. Failures that pass are retried, after the waits of `failures.py`. How many requests are in
flight is decided in `pacing.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raters.models.failures import (
    OVERLOAD_CODES,
    PassingError,
    connection_reason,
    error_text,
    is_overload,
    pause_seconds,
    retry_after_seconds,
)
from raters.models.pacing import EndpointLimits, Gate, Pacer
from raters.models.protocol import Completion, Message, SamplingSettings, one_line, split_reasoning, with_siblings
from raters.models.top_logprobs import label_logprobs, read_tokens
from raters.records import ModelAccessError, ModelError, ModelRequestError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_LOG = logging.getLogger(__name__)

OPENAI_BASE_URL = "https://api.openai.com/v1"
_MOST_TOKENS = 2**40  # no server counts more; a number beyond it would spoil every sum
_FEWER_LOGPROBS = {20: 5, 5: 0}
"""What is asked for next if a server refuses so many `top_logprobs`: OpenAI allows 20, others 5, some none."""
TRIES_TO_REACH = 2  # tries while no server has ever answered: a wrong URL should not cost minutes
_LEAST_BYTES_A_TOKEN = 3
"""Of UTF-8, for the tokens of a prompt that no server has counted yet: English has about 4, Chinese about 3."""
_DEFAULTS = EndpointLimits()


class OpenAIModel:
    """A model reached over HTTP.

    Attributes:
        spec: `openai/NAME`.
    """

    samples_share_a_seed = True

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        concurrency: int = 32,
        request_timeout_seconds: float = _DEFAULTS.request_timeout_seconds,
        connect_timeout_seconds: float = _DEFAULTS.connect_timeout_seconds,
        max_retries: int = _DEFAULTS.max_retries,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        """Read address and key; nothing is sent yet.

        Args:
            name: Model name as the server knows it.
            base_url: Address up to and including `/v1`; else OPENAI_BASE_URL, else OpenAI's own.
            concurrency: Most requests in flight at once; fewer while the server says that it is overloaded.
            request_timeout_seconds: Longest silence of the server during one request.
            connect_timeout_seconds: Longest wait for a connection.
            max_retries: Tries after the first, per request.
            requests_per_minute: Most requests in any 60 seconds; None for no limit.
            tokens_per_minute: Most tokens in any 60 seconds, as `pacing.Pacer` counts them; None for no limit.

        Raises:
            ModelAccessError: No key and no base URL, or one of them cannot be used.
        """
        self.spec = f"openai/{name}"
        self._name = name
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and not base_url:
            raise ModelAccessError(
                f"{self.spec}: OPENAI_API_KEY is not set; set it, or give --base-url for a server of your own"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ModelAccessError(f"{self.spec}: OPENAI_API_KEY holds characters no key has; set it again")
        self._base_url = base_url or OPENAI_BASE_URL
        self._place = self._shown_address()
        self._concurrency = concurrency
        self._request_timeout_seconds = request_timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._max_retries = max_retries
        self._requests_per_minute, self._tokens_per_minute = requests_per_minute, tokens_per_minute
        self._length_field = "max_tokens"
        self._top_logprobs = max(_FEWER_LOGPROBS)
        self._warned = False
        self._reached = False
        self._answers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI | None = None
        self._gate: Gate | None = None

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one completion per seed, in the order of `seeds`; see `protocol.Model`.

        Raises:
            ModelAccessError: Server unreachable, key refused, or model unknown.
            ModelRequestError: The server will not answer this request, whatever is tried, or failed at each try
                while it answered others.
            ModelError: A request failed after all retries.
        """
        if len(seeds) == 1:
            return [await self._draw(messages, seeds[0], settings)]
        tasks = [asyncio.ensure_future(self._draw(messages, seed, settings)) for seed in seeds]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Close all connections."""
        client, self._client, self._gate, self._loop = self._client, None, None, None
        if client is not None:
            with contextlib.suppress(RuntimeError):  # connections of a loop that has ended are gone already
                await client.close()

    def _shown_address(self) -> str:
        try:
            parts = urlsplit(self._base_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            shown = one_line(self._base_url.rpartition("@")[2])
            raise ModelAccessError(f"{self.spec}: base URL {shown!r} is no http(s) address; check --base-url")
        # Rebuilt from its parts, because user:password@ and ?key= belong in no message.
        return one_line(f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}")

    def _session(self) -> tuple[AsyncOpenAI, Gate]:
        """Return client and gate of the running event loop; neither survives a change of loops."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._gate is None or self._loop is not loop:
            try:
                from raters.models.transport import open_client
            except ImportError as error:
                needed = "pip install 'openai[aiohttp]'"
                raise ModelAccessError(f"{self.spec}: needs the openai package and aiohttp; {needed}") from error
            pacer = Pacer(
                self._concurrency,
                requests_per_minute=self._requests_per_minute,
                tokens_per_minute=self._tokens_per_minute,
            )
            self._loop, self._gate = loop, Gate(pacer, time.monotonic)
            self._client = open_client(
                self._base_url,
                self._key or "none",
                request_timeout_seconds=self._request_timeout_seconds,
                connect_timeout_seconds=self._connect_timeout_seconds,
            )
        return self._client, self._gate

    async def _draw(self, messages: Sequence[Message], seed: int, settings: SamplingSettings) -> Completion:
        client, gate = self._session()
        answers_at_failures: list[int] = []
        while True:
            try:
                completion = await self._request(client, gate, messages, seed, settings)
                self._answers += 1
                return completion
            except PassingError as error:
                answers_at_failures.append(self._answers)
                tries = len(answers_at_failures)
                lost = error.unreachable and not self._reached
                if lost and tries >= min(TRIES_TO_REACH, self._max_retries + 1):
                    raise ModelAccessError(
                        f"{self.spec}: no server answers at {self._place} ({error}); start it, or check --base-url"
                    ) from error
                if tries > self._max_retries:
                    raise self._given_up(error, answers_at_failures) from error
                # Without a place in the window: others may be answered meanwhile.
                await asyncio.sleep(pause_seconds(tries, error.retry_after_seconds))

    def _given_up(self, error: PassingError, answers_at_failures: Sequence[int]) -> ModelError:
        """Return what a request ends with after its last try.

        A server that went on answering others all the while will fail on this one for good, and a run must be able to
        end without it. Refused for overload it may just have come at the wrong times.

        Args:
            error: What the last try met.
            answers_at_failures: How many requests had been answered when each of its tries failed.
        """
        tries = len(answers_at_failures)
        failed = f"{self.spec}: {self._place} failed {tries} times"
        # The first waits are short, and nobody need have been answered in them.
        late = answers_at_failures[-max(3, tries // 2 + 1) :]
        if not error.overload and tries > 1 and all(before < after for before, after in pairwise(late)):
            others = late[-1] - answers_at_failures[0]
            words = f"{failed} on this request while it answered {others} others, the last time with: {error}"
            return ModelRequestError(words)
        return ModelError(f"{failed}, the last time with: {error}; try again later, or with fewer requests at once")

    async def _request(
        self,
        client: AsyncOpenAI,
        gate: Gate,
        messages: Sequence[Message],
        seed: int,
        settings: SamplingSettings,
        top_logprobs: int | None = None,
    ) -> Completion:
        """Return a completion, asking in other words if the server does not know ours.

        Args:
            client: The connection.
            gate: What holds requests back.
            messages: What is asked.
            seed: Of the draw.
            settings: How it is drawn.
            top_logprobs: How many likely tokens to ask for at each place, 0 for none; as many as the server is known
                to give if None.
        """
        import openai

        body: dict[str, Any] = {
            "model": self._name,
            "messages": list(messages),
            "seed": seed,
            "temperature": settings.temperature,
            self._length_field: settings.max_tokens,
        }
        if settings.top_p != 1.0:
            body["top_p"] = settings.top_p
        if settings.samples > 1:
            body["n"] = settings.samples
        wanted = self._top_logprobs if top_logprobs is None else top_logprobs
        if settings.label_logprobs and wanted:
            body |= {"logprobs": True, "top_logprobs": wanted}
        try:
            payload = await self._send(client, gate, body, settings.samples * settings.max_tokens)
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                reason = f"no connection within {self._connect_timeout_seconds:g} s"
                raise PassingError(reason, unreachable=True) from error
            raise PassingError(f"no answer within {self._request_timeout_seconds:g} s") from error
        except openai.APIConnectionError as error:
            unreachable = type(error.__cause__).__name__ == "ConnectError"
            raise PassingError(self._clean(connection_reason(error)), unreachable=unreachable) from error
        except openai.APIStatusError as error:
            self._reached = True
            if "max_tokens" in body and _wants_max_completion_tokens(error):
                self._length_field = "max_completion_tokens"
                return await self._request(client, gate, messages, seed, settings, top_logprobs)
            if "logprobs" in body and _refuses_logprobs(error):
                fewer = _FEWER_LOGPROBS[wanted]
                completion = await self._request(client, gate, messages, seed, settings, fewer)
                # Only an answer shows that it was the log-probabilities: an error may repeat any word of the prompt.
                self._take_fewer_logprobs(fewer, f"{error.status_code} {self._clean(error_text(error.body))}".strip())
                return completion
            raise self._refusal(error) from None  # the chain would show the server's words as they came
        return self._read_all(payload, settings.label_logprobs if "logprobs" in body else None)

    async def _send(self, client: AsyncOpenAI, gate: Gate, body: Mapping[str, Any], max_tokens: int) -> Any:
        """Return the JSON that a server answers to a request, once the gate lets it through.

        Args:
            client: The connection.
            gate: What holds requests back.
            body: The request.
            max_tokens: Most tokens of all samples of the answer.

        Raises:
            OpenAIError: No answer, or a status of 400 or more.
            PassingError: The answer is not JSON, or says that there are too many requests.
        """
        import httpx2
        import openai

        content = json.dumps(body).encode()
        pacer = gate.pacer
        ticket = await gate.enter(len(content) // _LEAST_BYTES_A_TOKEN + max_tokens)
        try:
            # Not `chat.completions.create`, which goes through every message of the body and then once more.
            answer = await client.post("/chat/completions", cast_to=httpx2.Response, content=content)
            self._reached = True
            try:
                payload = json.loads(answer.content)
            except (ValueError, RecursionError) as error:
                pacer.lost(ticket)
                raise PassingError(f"an answer that is not JSON ({self._clean(answer.text)[:80]!r})") from error
            failure = payload.get("error") if isinstance(payload, dict) else None
            if isinstance(failure, dict) and failure.get("code") in OVERLOAD_CODES:
                pacer.overloaded(gate.clock(), ticket, None)
                raise PassingError(self._clean(error_text(failure)), overload=True)
            pacer.answered(ticket, _tokens_used(payload))
            return payload
        except PassingError:
            raise
        except openai.APIStatusError as error:
            if is_overload(error):
                pacer.overloaded(gate.clock(), ticket, retry_after_seconds(error.response.headers))
            else:
                pacer.refused(ticket)
            raise
        except BaseException:
            pacer.lost(ticket)
            raise
        finally:
            gate.admit()

    def _take_fewer_logprobs(self, most: int, reason: str) -> None:
        """Ask for no more log-probabilities than that from now on, and say so if it is none."""
        if most < self._top_logprobs:
            self._top_logprobs = most
            if not most:
                self._warn_once(f"refuses log-probabilities ({reason})")

    def _warn_once(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning("%s: %s %s; what it writes is rated without them", self.spec, self._place, what)

    def _refusal(self, error: APIStatusError) -> Exception:
        """Return what to raise for an HTTP status of 400 or more."""
        status = error.status_code
        words = f"{status} {self._clean(error_text(error.body))}".strip()
        place = f"{self.spec}: {self._place}"
        if status in (401, 403):
            return ModelAccessError(f"{place} refused the key ({words}); set OPENAI_API_KEY")
        if status == 404 or error.code == "model_not_found":
            return ModelAccessError(f"{place} does not serve this model ({words}); check its name and --base-url")
        if error.code == "insufficient_quota":
            return ModelAccessError(f"{place} says the quota is used up ({words}); top it up")
        if status in (408, 409, 429) or status >= 500:
            if status == 429 and "request too large" in words.lower():  # OpenAI's, for more than a minute's tokens
                return ModelRequestError(f"{place} refused the request ({words}); shorten it, or lower --max-tokens")
            wait = retry_after_seconds(error.response.headers)
            return PassingError(words, wait, overload=is_overload(error))
        hint = "check the sampling settings and the prompt's length"
        return ModelRequestError(f"{place} refused the request ({words}); {hint}")

    def _read_all(self, payload: Any, labels: Sequence[str] | None) -> Completion:
        """Return the first sample of an answer, with the others as its siblings, up to one that cannot be read."""
        choices = payload.get("choices") if isinstance(payload, dict) else None
        if not isinstance(choices, list) or len(choices) < 2:
            return self._read(payload, labels)
        if all(isinstance(choice, dict) and isinstance(choice.get("index"), int) for choice in choices):
            choices = sorted(choices, key=lambda choice: int(choice["index"]))
        samples: list[Completion] = []
        for choice in choices:
            try:
                samples.append(self._read({**payload, "choices": [choice]}, labels))
            except PassingError:
                if not samples:
                    raise
                break
        return with_siblings(samples)

    def _read(self, payload: Any, labels: Sequence[str] | None) -> Completion:
        choices = payload.get("choices") if isinstance(payload, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            # Gateways report a failure of the server behind them as 200 with an `error`.
            failure = payload.get("error") if isinstance(payload, dict) else None
            raise PassingError(self._clean(error_text(failure)) or "an answer without choices")
        refusal = message.get("refusal")
        text = text_of(message.get("content"))
        finish_reason = choice.get("finish_reason")
        if not text and isinstance(refusal, str) and refusal:
            text, finish_reason = refusal, "refusal"
        thought = text_of(message.get("reasoning")) or text_of(message.get("reasoning_content"))
        reasoning, text = split_reasoning(text, thought)
        tokens = read_tokens(choice.get("logprobs")) if labels else None
        if labels and tokens is None and text:
            self._warn_once("sends no log-probabilities")
        usage = payload.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Completion(
            text=text,
            reasoning=reasoning,
            finish_reason=finish_reason if isinstance(finish_reason, str) and finish_reason else "unknown",
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            label_logprobs=label_logprobs(tokens, text, labels) if labels and tokens else None,
        )

    def _clean(self, text: str) -> str:
        """Return a server's words as one line, without the key, which some servers repeat."""
        return one_line(text.replace(self._key, "[key]") if self._key else text)


def _wants_max_completion_tokens(error: APIStatusError) -> bool:
    """True if a server refuses `max_tokens` itself, not its size (vLLM's words for that name both fields)."""
    words = str(error.body).lower()
    return error.status_code == 400 and "max_completion_tokens" in words and "supported" in words


def _refuses_logprobs(error: APIStatusError) -> bool:
    """True if a server names log-probabilities in its refusal: that it has none, or not so many."""
    return error.status_code not in (401, 429) and "logprob" in str(error.body).lower()


def _tokens_used(payload: Any) -> int | None:
    usage = payload.get("usage") if isinstance(payload, dict) else None
    names = ("prompt_tokens", "completion_tokens")
    counts = [_count(usage.get(name)) for name in names] if isinstance(usage, dict) else [None]
    return None if None in counts else sum(count or 0 for count in counts)


def text_of(value: object) -> str:
    """Return a text field of a message: a string, or the text parts of a list; else empty."""
    if isinstance(value, list):
        return "".join(text_of(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_TOKENS else None
