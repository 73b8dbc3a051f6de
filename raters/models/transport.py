"""The openai client over aiohttp: every request is openai's own, at a third of its time on the CPU.

With hundreds of requests in flight the client spends more on one than a small run has to spend: its own pool looks
through all connections for each, and headers, address and redirects are worked out anew every time. aiohttp keeps the
connections here (openai's own aiohttp transport takes a dropped connection for one that could not be made, which
would end a run), and what is the same in every request is worked out once. If a later openai no longer calls the hooks
that are overridden here, it does its usual work, and only the speed is lost.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai
from yarl import URL

KEEP_ALIVE_SECONDS = 4.0
"""Shorter than the 5 s of uvicorn, under which most servers of open models run: or a request meets a closed door."""
_OUR_OWN = frozenset({"host", "content-length", "connection", "accept-encoding"})
"""Headers that aiohttp writes itself."""
_HEADERS = "raters.headers"
"""Extension of a request: its headers, ready for aiohttp."""
_OF_THE_BODY = frozenset({"content-length", "content-encoding", "transfer-encoding"})
"""Headers of an answer that no longer hold once its body is read and decompressed."""


def open_client(
    base_url: str, key: str, *, request_timeout_seconds: float, connect_timeout_seconds: float
) -> openai.AsyncOpenAI:
    """Return an openai client for the running event loop that never tries again by itself.

    Args:
        base_url: Address up to and including `/v1`.
        key: API key.
        request_timeout_seconds: Longest silence of the server during one request.
        connect_timeout_seconds: Longest wait for a connection.
    """
    timeout = openai.Timeout(request_timeout_seconds, connect=connect_timeout_seconds)
    connections = _Connections(base_url, request_timeout_seconds, connect_timeout_seconds)
    http_client = _HttpClient(transport=connections, timeout=timeout, trust_env=False)
    return _Client(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http_client)


class _Client(openai.AsyncOpenAI):
    """openai's client, which builds the first request to an address and takes the others after it."""

    def _build_request(self, options: Any, **more: Any) -> httpx2.Request:
        if not isinstance(options.content, bytes) or options.params or options.headers:
            return super()._build_request(options, **more)
        first: dict[str, tuple[httpx2.Request, dict[str, str]]] = self.__dict__.setdefault("_first_requests", {})
        if options.url not in first:
            request = super()._build_request(options, **more)
            first[options.url] = request, _sent_headers(request)
        like, headers = first[options.url]
        if options.idempotency_key and "idempotency-key" in headers:
            headers = {**headers, "idempotency-key": options.idempotency_key}
        extensions = {**like.extensions, _HEADERS: headers}
        return httpx2.Request(like.method, like.url, content=options.content, extensions=extensions)


class _HttpClient(httpx2.AsyncClient):
    """Hands requests on: openai signs them, aiohttp follows redirects, and cookies are nobody's business here."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        return await self._transport.handle_async_request(request)


class _Connections(httpx2.AsyncBaseTransport):
    """A pool of kept-alive connections to one server."""

    def __init__(self, base_url: str, request_timeout_seconds: float, connect_timeout_seconds: float) -> None:
        address = urlsplit(base_url)
        proxies = {} if proxy_bypass(address.hostname or "") else getproxies()
        self._proxy = proxies.get(address.scheme) or proxies.get("all")
        needs_tls = "https" in (address.scheme, urlsplit(self._proxy or "").scheme)
        connector = aiohttp.TCPConnector(
            limit=0,  # whoever sends holds back already
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            ssl=httpx2.create_ssl_context() if needs_tls else True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(sock_connect=connect_timeout_seconds, sock_read=request_timeout_seconds),
        )
        self._addresses: dict[str, tuple[URL, dict[str, str]]] = {}
        self._left_behind = weakref.finalize(self, _close_quietly, self._session, connector)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url, signed = self._address(str(request.url))
        headers = request.extensions.get(_HEADERS) or _sent_headers(request)
        with _errors_of_httpx():
            async with self._session.request(
                request.method, url, data=request.content, headers={**headers, **signed}, proxy=self._proxy
            ) as answer:
                content = await answer.read()
        # Nobody asks for the headers of what went well.
        kept: list[tuple[str, str]] = []
        if answer.status >= 400:
            kept = [pair for pair in answer.headers.items() if pair[0].lower() not in _OF_THE_BODY]
        return httpx2.Response(answer.status, headers=kept, content=content, request=request)

    def _address(self, text: str) -> tuple[URL, dict[str, str]]:
        """Return a URL without user and password, and the header that says them in place of the key, as with httpx."""
        if text not in self._addresses:
            url = URL(text)
            user, password = url.user, url.password
            signed = {} if user is None else {"authorization": aiohttp.encode_basic_auth(user, password or "")}
            self._addresses[text] = url.with_user(None), signed
        return self._addresses[text]

    async def aclose(self) -> None:
        self._left_behind.detach()
        await self._session.close()


def _sent_headers(request: httpx2.Request) -> dict[str, str]:
    """Return the headers of a request as aiohttp takes them."""
    return {name: value for name, value in request.headers.items() if name not in _OUR_OWN}


def _close_quietly(session: aiohttp.ClientSession, connector: aiohttp.TCPConnector) -> None:
    """Close what an event loop that has ended left behind, without the complaints of aiohttp."""
    session.detach()
    closing = connector.close()
    with warnings.catch_warnings(), contextlib.suppress(StopIteration, RuntimeError):
        warnings.simplefilter("ignore")  # of what would wait for the loop that has ended
        closing.send(None)
    closing.close()


@contextlib.contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """Raise the errors of httpx2, which openai knows, for those of aiohttp."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx2.ConnectTimeout(str(error)) from error
    except TimeoutError as error:
        raise httpx2.ReadTimeout(str(error)) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error)) from error
    except aiohttp.ClientError as error:
        raise httpx2.ReadError(str(error) or type(error).__name__) from error
