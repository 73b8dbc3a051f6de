"""A chat completions server of fixed latency and unlimited slots, cheap enough to stand beside what it measures.

A bare asyncio protocol in a process of its own: it reads no more of a request than where it ends, and sends the same
bytes after the same time. `python -m tests.benchmarks.latency_server LATENCY_SECONDS` prints its port, then serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

ANSWER_BYTES = 1000
TRACE = "The text gives a reason, and an example for it. "


def answer() -> bytes:
    """Return an HTTP response whose JSON body has about `ANSWER_BYTES`, and a verdict of 3."""
    message = {"role": "assistant", "content": "", "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 500, "completion_tokens": 150, "total_tokens": 650}
    payload = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "fixed"}
    payload |= {"choices": [choice], "usage": usage}
    missing = ANSWER_BYTES - len(json.dumps(payload)) - len("<rating>3</rating>")
    message["content"] = (TRACE * 99)[:missing] + "<rating>3</rating>"
    body = json.dumps(payload).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, response: bytes, latency_seconds: float) -> None:
        self.loop, self.response, self.latency_seconds = loop, response, latency_seconds
        self.waiting = b""
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's are of no asyncio class

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while (end := self.waiting.find(b"\r\n\r\n")) >= 0:
            head = self.waiting[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self.waiting) < end + 4 + length:
                return
            self.waiting = self.waiting[end + 4 + length :]
            self.loop.call_later(self.latency_seconds, self.send)

    def send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.response)


async def serve(latency_seconds: float) -> None:
    """Serve on a free port, which is printed, until killed."""
    loop, response = asyncio.get_running_loop(), answer()
    server = await loop.create_server(
        lambda: _Connection(loop, response, latency_seconds), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def serving(latency_seconds: float) -> Iterator[str]:
    """Run the server in a process of its own; the value is its base URL."""
    command = [sys.executable, "-m", "tests.benchmarks.latency_server", str(latency_seconds)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2]
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
