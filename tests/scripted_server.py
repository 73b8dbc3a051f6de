"""A real local HTTP server that speaks `/v1/chat/completions` and answers what a script tells it to."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

from tests.loopback import LoopbackServer, LoopbackService


@dataclass(frozen=True)
class Answer:
    """A completion, field by field as the real API sends it.

    `logprobs` holds entries of `token_entry`; they are sent if the request asks for them, cut to its `top_logprobs`.
    `siblings` are the other samples of a request with `n`; tokens are counted in the first answer alone.
    """

    content: str | None = ""
    reasoning: str | None = None
    reasoning_field: Literal["reasoning", "reasoning_content"] = "reasoning"
    refusal: str | None = None
    finish_reason: str | None = "stop"
    prompt_tokens: int = 11
    completion_tokens: int = 7
    reasoning_tokens: int = 0
    usage: bool = True
    choices: bool = True
    logprobs: Sequence[Mapping[str, Any]] | None = None
    delay_seconds: float = 0.0
    siblings: Sequence[Answer] = ()


@dataclass(frozen=True)
class Fault:
    """A failure: an HTTP status in OpenAI's error format, a body of any bytes, or a cut connection.

    `drop` cuts it before any answer, `reset` in the middle of the body, with what TCP sends for a crashed peer.
    """

    status: int = 500
    message: str = "The server had an error while processing your request."
    type: str = "server_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop: bool = False
    reset: bool = False
    delay_seconds: float = 0.0


def token_entry(text: str, logprob: float, top: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return a token of `choices[].logprobs.content` as OpenAI sends it, with the likely tokens in its place."""

    def entry(name: str, value: float) -> dict[str, Any]:
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    ranked = sorted((top or {}).items(), key=lambda option: -option[1])
    return {**entry(text, logprob), "top_logprobs": [entry(*option) for option in ranked]}


Script = Callable[[dict[str, Any], int], Answer | Fault]


class ScriptedServer(LoopbackService):
    """Serves until it is left; `requests` holds every chat request body, in the order of arrival.

    Args:
        script: Called with the request's body and how many requests came before it.
        key: If given, other keys are refused with 401, and the refusal repeats the key that was sent.
    """

    def __init__(self, script: Script, key: str | None = None, model: str = "scripted", port: int = 0) -> None:
        self.script = script
        self.key = key
        self.model = model
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        super().__init__(LoopbackServer(("127.0.0.1", port), _handler(self)))

    def reply_to(self, body: dict[str, Any]) -> Answer | Fault:
        with self._lock:
            count = len(self.requests)
            self.requests.append(body)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.script(body, count)
            time.sleep(reply.delay_seconds)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1


def error_body(message: str, type: str, param: str | None, code: str | None) -> bytes:
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()


def _choice(answer: Answer, body: dict[str, Any], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content,
        "refusal": answer.refusal,
        "annotations": [],
    }
    if answer.reasoning is not None:
        message[answer.reasoning_field] = answer.reasoning
    logprobs = None
    if body.get("logprobs") and answer.logprobs is not None:
        most = body.get("top_logprobs") or 0
        cut = [{**entry, "top_logprobs": entry["top_logprobs"][:most]} for entry in answer.logprobs]
        logprobs = {"content": cut, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


def completion_body(answer: Answer, body: dict[str, Any], count: int) -> bytes:
    choices = [_choice(each, body, index) for index, each in enumerate([answer, *answer.siblings])]
    payload: dict[str, Any] = {
        "id": f"chatcmpl-{count}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body.get("model"),
        "choices": choices if answer.choices else [],
        "service_tier": "default",
        "system_fingerprint": None,
    }
    if answer.usage:
        payload["usage"] = {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": answer.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
    return json.dumps(payload).encode()


def _handler(owner: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            return

        def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def let_in(self) -> bool:
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if owner.key is None or sent == owner.key:
                return True
            told = f"Incorrect API key provided: {sent}."
            self.send(401, error_body(told, "invalid_request_error", None, "invalid_api_key"))
            return False

        def do_GET(self) -> None:
            if not self.let_in():
                return
            if self.path != "/v1/models":
                self.send(404, error_body(f"Invalid URL (GET {self.path})", "invalid_request_error", None, None))
                return
            entry = {"id": owner.model, "object": "model", "created": 1_700_000_000, "owned_by": "tests"}
            self.send(200, json.dumps({"object": "list", "data": [entry]}).encode())

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.let_in():
                return
            if self.path != "/v1/chat/completions":
                self.send(404, error_body(f"Invalid URL (POST {self.path})", "invalid_request_error", None, None))
                return
            body = json.loads(raw)
            reply = owner.reply_to(body)
            try:
                if isinstance(reply, Answer):
                    self.send(200, completion_body(reply, body, len(owner.requests)))
                elif reply.drop:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif reply.reset:
                    self.close_connection = True
                    self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"id": "chatcmpl-1", "choi')
                    self.wfile.flush()
                    time.sleep(0.01)  # or the reset overtakes what was sent
                    # Closing with a linger of no time sends RST in place of FIN.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(self.connection.detach())
                elif reply.body is not None:
                    self.send(reply.status, reply.body, reply.headers)
                else:
                    told = error_body(reply.message, reply.type, reply.param, reply.code)
                    self.send(reply.status, told, reply.headers)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up waiting

    return Handler
