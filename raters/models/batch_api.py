"""A provider's batch API: requests handed over as a file and answered within a day, at a lower price.

The form of the files is that of OpenAI's Batch API, which `vllm run-batch` and other servers read as well: a request a
line, told apart by its `custom_id`, and an answer a line in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raters.journal import parse_line, replacing
from raters.models.failures import (
    PassingError,
    connection_reason,
    error_text,
    is_overload,
    pause_seconds,
    retry_after_seconds,
)
from raters.models.openai import OpenAIModel
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.records import DataError, ModelAccessError, ModelError, ModelRequestError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI
    from openai.types import Batch

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000
"""Of a file that OpenAI takes."""
MOST_BYTES = 200 * 10**6
"""Likewise."""
ENDED = ("completed", "expired", "cancelled", "failed")
_WINDOW: Literal["24h"] = "24h"
_TOKEN = "judgeseye"
"""Key of a batch's metadata under which it is found again."""
_REFUSED_FOR_GOOD = (400, 413, 422)
_NO_ACCESS = (401, 403, 404)
_ANSWERED = 200

Answer = TypeVar("Answer")


def request_line(
    model: str, custom_id: str, messages: Sequence[Message], seed: int, settings: SamplingSettings
) -> bytes:
    """Return a request as one line of a batch file.

    The length is `max_completion_tokens`, which OpenAI's newer models want and vLLM knows.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "seed": seed,
        "temperature": settings.temperature,
        "max_completion_tokens": settings.max_tokens,
    }
    if settings.top_p != 1.0:
        body["top_p"] = settings.top_p
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class BatchState:
    """How far a batch is.

    Attributes:
        status: The provider's word; one of ENDED if nothing more comes.
        completed: Requests that have an answer.
        failed: Requests that failed.
        total: Requests; 0 while they are not counted.
        output_file_id: File of answers, if there is one.
        error_file_id: File of requests that failed, if there is one.
        problem: Why the batch failed as a whole; empty if it did not.
    """

    status: str
    completed: int
    failed: int
    total: int
    output_file_id: str | None
    error_file_id: str | None
    problem: str


class BatchEndpoint(OpenAIModel):
    """The batch API of the server that a model is on."""

    _batch_client: AsyncOpenAI | None = None

    async def close(self) -> None:
        """Close all connections."""
        client, self._batch_client = self._batch_client, None
        if client is not None:
            await client.close()
        await super().close()

    async def upload(self, path: Path) -> str:
        """Return the id of a file of requests, once the provider has it.

        Raises:
            ModelAccessError: The key is refused, or there is no such API.
            ModelError: It failed after all retries.
        """
        content = path.read_bytes()

        async def call(client: AsyncOpenAI) -> str:
            return (await client.files.create(file=(path.name, content), purpose="batch")).id

        return await self._until_answered("the file", call)

    async def submit(self, file_id: str, token: str, *, may_exist: bool) -> str:
        """Return the id of the batch of a file, which is made at most once.

        Args:
            file_id: Of the uploaded file.
            token: Written into the batch, so that it can be found if the answer to its making is lost.
            may_exist: True if it may have been made already.

        Raises:
            ModelAccessError: See `upload`.
            ModelError: Likewise, or the batch is refused.
        """

        async def create(client: AsyncOpenAI) -> str:
            made = await client.batches.create(
                input_file_id=file_id, endpoint=ENDPOINT, completion_window=_WINDOW, metadata={_TOKEN: token}
            )
            return made.id

        tries = 0
        while True:
            if may_exist and (found := await self._find(token)) is not None:
                return found
            may_exist = True
            try:
                return await self._once("the batch", create)
            except PassingError as error:
                tries += 1
                await self._wait(error, tries)

    async def look(self, batch_id: str) -> BatchState:
        """Return how far a batch is.

        Raises:
            ModelAccessError: The key is refused, or the provider does not know the batch.
            ModelError: It failed after all retries.
        """

        async def call(client: AsyncOpenAI) -> Batch:
            return await client.batches.retrieve(batch_id)

        batch = await self._until_answered(f"batch {batch_id}", call)
        counts, problems = batch.request_counts, (batch.errors.data if batch.errors else None) or []
        problem = ""
        if batch.status == "failed":
            first = problems[0] if problems else None
            place = f"line {first.line}: " if first and first.line is not None else ""
            problem = self._clean(f"{place}{(first and (first.message or first.code)) or 'it does not say why'}")
        return BatchState(
            status=batch.status,
            completed=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            total=counts.total if counts else 0,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            problem=problem,
        )

    async def download(self, file_id: str, path: Path, lines: int) -> bool:
        """Write a file of answers or errors to disk; return False if the provider has it no longer.

        Args:
            file_id: The provider's name for it.
            path: Where it is written.
            lines: How many it should have. One that has not a single one of them is some other page, sent in its place:
                taken for the answers, it would have all of them asked for, and paid for, again.

        Raises:
            ModelAccessError: The key is refused.
            ModelError: It failed after all retries.
            StorageError: It cannot be written.
        """

        async def call(client: AsyncOpenAI) -> bool:
            async with client.files.with_streaming_response.content(file_id) as answer:
                with replacing(path) as file:
                    async for block in answer.iter_bytes(1 << 20):
                        file.write(block)
            if lines and not _holds_answers(path):
                raise PassingError(f"a file {file_id} without answers")
            return True

        try:
            return await self._until_answered(f"file {file_id}", call)
        except _GoneError:
            return False

    def read_answer(self, record: Mapping[str, Any]) -> Completion:
        """Return the completion of one line of a file of answers or errors.

        Raises:
            ModelRequestError: The request was refused for good.
            ModelAccessError: The key or the model was refused.
            ModelError: There is no answer, and asking again may bring one.
        """
        response = record.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == _ANSWERED and not record.get("error"):
            try:
                return self._read(body, None)
            except PassingError as error:
                raise ModelError(str(error)) from error
        words = self._clean(error_text(record.get("error")) or error_text(body)) or "no answer"
        words = words if status is None else f"{status} {words}"
        if status in _REFUSED_FOR_GOOD:
            hint = "check the sampling settings and the prompt's length"
            raise ModelRequestError(f"{self.spec}: the batch refused the request ({words}); {hint}")
        if status in _NO_ACCESS:
            raise ModelAccessError(f"{self.spec}: the batch refused the key or the model ({words}); check both")
        raise ModelError(words)

    # --- calls --------------------------------------------------------------------------------------------

    async def _find(self, token: str) -> str | None:
        """Return the id of the batch that carries a token; None if there is none."""

        async def call(client: AsyncOpenAI) -> str | None:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(_TOKEN) == token:
                    return batch.id
            return None

        return await self._until_answered("the list of batches", call)

    async def _until_answered(self, what: str, call: Callable[[AsyncOpenAI], Awaitable[Answer]]) -> Answer:
        """Return what a call comes to that may be made again as often as it takes."""
        tries = 0
        while True:
            try:
                return await self._once(what, call)
            except PassingError as error:
                tries += 1
                await self._wait(error, tries)

    async def _wait(self, error: PassingError, tries: int) -> None:
        if tries > self._max_retries:
            raise ModelError(
                f"{self.spec}: {self._place} failed {tries} times, the last time with: {error}; nothing is lost, give "
                "the same command again"
            ) from error
        await asyncio.sleep(pause_seconds(tries, error.retry_after_seconds))

    async def _once(self, what: str, call: Callable[[AsyncOpenAI], Awaitable[Answer]]) -> Answer:
        """Return what one call comes to.

        Raises:
            PassingError: It may go through later.
            _GoneError: The server does not know what is asked for.
            ModelAccessError: The key is refused.
            ModelError: The call is refused for good.
        """
        import httpx2
        import openai

        if self._batch_client is None:
            # openai's own transport, since files go up in parts, which ours does not send.
            timeout = openai.Timeout(self._request_timeout_seconds, connect=self._connect_timeout_seconds)
            self._batch_client = openai.AsyncOpenAI(
                api_key=self._key or "none", base_url=self._base_url, max_retries=0, timeout=timeout
            )
        try:
            return await call(self._batch_client)
        except openai.APITimeoutError as error:
            raise PassingError(f"no answer within {self._request_timeout_seconds:g} s") from error
        except openai.APIConnectionError as error:
            raise PassingError(self._clean(connection_reason(error)), unreachable=True) from error
        except httpx2.HTTPError as error:  # while a file is read
            raise PassingError(self._clean(str(error) or type(error).__name__)) from error
        except openai.APIStatusError as error:
            raise await self._refused(what, error) from None
        except (openai.APIError, json.JSONDecodeError) as error:
            raise PassingError(self._clean(f"an answer that cannot be read ({error})")) from error
        except (AttributeError, TypeError) as error:  # openai's client takes what is not JSON for plain text
            raise PassingError("an answer that is not of a batch API") from error

    async def _refused(self, what: str, error: APIStatusError) -> Exception:
        with contextlib.suppress(Exception):  # of a streamed answer, the words are still to be read
            await error.response.aread()
        body = error.body
        if body is None:
            with contextlib.suppress(ValueError, RuntimeError):
                body = error.response.json()
        status = error.status_code
        words = f"{status} {self._clean(error_text(body))}".strip()
        place = f"{self.spec}: {self._place}"
        if status in (401, 403) or error.code == "insufficient_quota":
            return self._refusal(error)
        if status in (404, 405, 501):
            hint = "check --base-url, or write a file with --batch-file and have it answered elsewhere"
            return _GoneError(f"{place} does not know {what} ({words}); {hint}")
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after_seconds(error.response.headers)
            return PassingError(words, wait, overload=is_overload(error))
        return ModelError(f"{place} refused {what} ({words}); mend that and give the same command again")


def _holds_answers(path: Path) -> bool:
    """Return True if a file has a line that is an answer or an error, of whatever request."""
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(DataError):
                if "custom_id" in parse_line(line, str(path)):
                    return True
    return False


class _GoneError(ModelAccessError):
    """The server does not know what is asked for: a batch, a file, or batches at all."""
