"""Asking an OpenAI-compatible server with nothing but the standard library, for exported raters (see `judge`)."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from raters.models.failures import error_text, pause_seconds, retry_after_seconds
from raters.models.openai import OPENAI_BASE_URL, text_of
from raters.models.protocol import Completion, one_line, split_reasoning

TRIES = 6
TIMEOUT_SECONDS = 600.0
_PASSING = (408, 409, 429)
_MOST_TOKENS, _NEWER = "max_tokens", "max_completion_tokens"
"""OpenAI's newer models want the second, older servers know the first alone."""


class JudgeError(RuntimeError):
    """What keeps an item from being rated: a field that is missing, a server that does not answer."""


class Server:
    """The server at JUDGE_BASE_URL with the key JUDGE_API_KEY, or else at OPENAI_BASE_URL with OPENAI_API_KEY."""

    def __init__(self) -> None:
        """Send nothing yet."""
        self._most_tokens = _MOST_TOKENS

    def complete(self, body: Mapping[str, Any], who: str) -> Completion:
        """Return what the server answers to a request.

        Args:
            body: In the form of `/v1/chat/completions`.
            who: Asks, for errors.

        Raises:
            JudgeError: If it refuses the request, or does not answer after all tries.
        """
        problem = ""
        for tries in range(1, TRIES + 1):
            wait = None
            try:
                return completion_of(self._send(body))
            except urllib.error.HTTPError as error:
                words = _words_of(error)
                problem = f"{error.code} {words}".strip()
                newer = error.code == 400 and _NEWER in words and "supported" in words
                if newer and self._most_tokens != _NEWER:
                    self._most_tokens = _NEWER
                    continue
                if error.code not in _PASSING and error.code < 500:
                    break
                wait = retry_after_seconds({name.lower(): value for name, value in error.headers.items()})
            except (OSError, ValueError) as error:  # no connection, a timeout, or an answer that cannot be read
                problem = one_line(str(getattr(error, "reason", error)) or type(error).__name__)
            if tries < TRIES:
                time.sleep(pause_seconds(tries, wait))
        raise JudgeError(f"{who}: {body['model']} at {_shown_address()} gave no answer ({problem})")

    def _send(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("JUDGE_API_KEY") or os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key.strip()}"
        sent = {self._most_tokens if name == _MOST_TOKENS else name: value for name, value in body.items()}
        request = urllib.request.Request(f"{_address()}/chat/completions", json.dumps(sent).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())


def completion_of(payload: Any) -> Completion:
    """Return the completion that a server answered with.

    Raises:
        ValueError: If the answer has none.
    """
    choices = payload.get("choices") if isinstance(payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        failure = payload.get("error") if isinstance(payload, dict) else None
        raise ValueError(one_line(error_text(failure)) or "an answer without choices")
    text = text_of(message.get("content")) or text_of(message.get("refusal"))
    thought = text_of(message.get("reasoning")) or text_of(message.get("reasoning_content"))
    return completion_from(text, thought, str(choice.get("finish_reason")))


def completion_from(text: str, thought: str = "", finish_reason: str = "stop") -> Completion:
    """Return a model's words as a completion, with the reasoning told from the answer."""
    reasoning, answer = split_reasoning(text, thought)
    return Completion(answer, reasoning, finish_reason, None, None)


def _address() -> str:
    return (os.environ.get("JUDGE_BASE_URL") or os.environ.get("OPENAI_BASE_URL") or OPENAI_BASE_URL).rstrip("/")


def _shown_address() -> str:
    return one_line(_address().rpartition("@")[2].partition("?")[0])  # a password or key belongs in no message


def _words_of(error: urllib.error.HTTPError) -> str:
    """Return what a server says with a refusal, without the key, which some servers repeat."""
    try:
        words = error_text(json.loads(error.read()))
    except (OSError, ValueError):
        words = ""
    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY"):
        words = words.replace(os.environ.get(name, "").strip() or "\0", "[key]")
    return one_line(words)
