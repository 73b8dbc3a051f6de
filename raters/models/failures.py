"""What a server's failure means: what it says, whether a later try may do better, and how long to wait for that.

Waits grow by exponential backoff with equal jitter (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture
Blog), whose least sum sees a run through a server's restart; Retry-After comes first.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import APIStatusError

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
_OVERLOAD_WORDS = re.compile("overload|over capacity|at capacity|too many requests|rate.?limit|throttl|busy", re.I)
"""What servers say with 503 if it is the load: others say it while they load a model, or are down."""
OVERLOAD_CODES = (429, 529)


class PassingError(Exception):
    """A failure that a later try may not meet.

    Attributes:
        retry_after_seconds: How long the server asked to wait; None if it did not say.
        unreachable: True if no connection could be made at all.
        overload: True if the server was asked too much at once.
    """

    def __init__(
        self,
        reason: str,
        retry_after_seconds: float | None = None,
        *,
        unreachable: bool = False,
        overload: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.unreachable, self.overload = unreachable, overload


def is_overload(error: APIStatusError) -> bool:
    """True if a server says that it is asked too much at once, not that it is broken."""
    return error.status_code in OVERLOAD_CODES or (
        error.status_code == 503 and _OVERLOAD_WORDS.search(error_text(error.body)) is not None
    )


def pause_seconds(tries: int, asked_seconds: float | None) -> float:
    """Return how long to wait after so many tries that failed, for as long as the server asked if it did."""
    if asked_seconds is not None:
        # A little jitter on top, or all that were refused together come back together.
        return asked_seconds + random.uniform(0.0, min(1.0, 0.1 * asked_seconds))
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (tries - 1))
    return random.uniform(longest / 2.0, longest)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the wait that Retry-After asks for, in seconds or as a date (RFC 9110, 10.2.3), capped."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def error_text(body: object) -> str:
    """Return the message of an error body: OpenAI's, vLLM's, FastAPI's, or plain text."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), "")
    return body if isinstance(body, str) else json.dumps(body) if body else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    inner = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    for cause in [*inner, error.__cause__ or error.__context__]:
        if cause is not None:
            yield from _causes(cause)


def connection_reason(error: BaseException) -> str:
    """Return in words why there is no connection, whatever the library wrapped that in."""
    causes = list(_causes(error))
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "connection refused"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "unknown host"
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__
