"""The same requests as a run of infer_traces makes, by nothing but a client: what there is to compare its speed with.

`python bare_clients.py CLIENT BASE_URL REQUESTS IN_FLIGHT` prints requests per second and CPU milliseconds a request as
JSON. It imports nothing of the project, so that a client may stand in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

PROMPT = "Say what the text argues, then rate it from 1 to 5. " * 38
Ask = Callable[[int], Awaitable[None]]


def body(seed: int) -> dict[str, Any]:
    """Return a request of about 2 kB."""
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": "fixed", "messages": messages, "seed": seed, "temperature": 1.0, "max_tokens": 4096}


async def drive(ask: Ask, requests: int, in_flight: int) -> None:
    numbers = iter(range(requests))

    async def worker() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(worker() for _ in range(in_flight)))


async def aiohttp_client(base_url: str, requests: int, in_flight: int) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> None:
            async with session.post(f"{base_url}/chat/completions", json=body(number)) as answer:
                json.loads(await answer.read())

        await drive(ask, requests, in_flight)


async def openai_client(base_url: str, requests: int, in_flight: int, *, over_aiohttp: bool) -> None:
    import httpx2
    import openai

    http_client = None
    if over_aiohttp:
        http_client = openai.DefaultAioHttpClient(limits=httpx2.Limits(max_connections=0))
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0, http_client=http_client) as client:

        async def ask(number: int) -> None:
            answer = await client.chat.completions.with_raw_response.create(**body(number))
            json.loads(answer.text)

        await drive(ask, requests, in_flight)


async def inspect_client(base_url: str, requests: int, in_flight: int) -> None:
    import os

    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    os.environ["LOCAL_API_KEY"] = "none"
    model = get_model("openai-api/local/fixed", base_url=base_url, config=GenerateConfig(max_connections=in_flight))

    async def ask(number: int) -> None:
        config = GenerateConfig(seed=number, max_tokens=4096, temperature=1.0)
        assert (await model.generate([ChatMessageUser(content=PROMPT)], config=config)).completion

    await drive(ask, requests, in_flight)


async def litellm_client(base_url: str, requests: int, in_flight: int) -> None:
    import litellm

    async def ask(number: int) -> None:
        asked = {**body(number), "model": "openai/fixed"}
        answer = await litellm.acompletion(**asked, api_base=base_url, api_key="none", num_retries=0)
        assert answer.choices[0].message.content

    await drive(ask, requests, in_flight)


async def openai_over_aiohttp(base_url: str, requests: int, in_flight: int) -> None:
    await openai_client(base_url, requests, in_flight, over_aiohttp=True)


async def openai_plain(base_url: str, requests: int, in_flight: int) -> None:
    await openai_client(base_url, requests, in_flight, over_aiohttp=False)


CLIENTS: dict[str, Callable[[str, int, int], Awaitable[None]]] = {
    "aiohttp": aiohttp_client,
    "openai": openai_plain,
    "openai over aiohttp": openai_over_aiohttp,
    "inspect_ai": inspect_client,
    "litellm": litellm_client,
}


async def main(client: str, base_url: str, requests: int, in_flight: int) -> dict[str, float]:
    began, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    await CLIENTS[client](base_url, requests, in_flight)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {"per_second": requests / seconds, "cpu_ms": 1000 * used / requests}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
