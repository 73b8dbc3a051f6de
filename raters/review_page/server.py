"""A web server for one person at this machine: loopback alone, and nothing without the token in its address.

Three things keep other pages in the same browser out. Every request names the token. The Host it was sent to has to be
this address, or a name that was pointed here after loading (DNS rebinding) would count as the same origin. What writes
takes the token from a header alone, which no form and no other origin can set, and no foreign Origin is answered.

The page itself gets texts of others as JSON and puts them in as text; its policy forbids inline script, foreign
sources, frames, and any way from text to markup (Trusted Types).
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from raters.records import ConfigError, DataError, JudgeseyeError
from raters.review_page.book import ReviewBook
from raters.review_page.label_index import as_show

LOOPBACK = "127.0.0.1"
TOKEN_HEADER = "X-Judgeseye-Token"
_MOST_BYTES = 2 << 20
_IDLE_SECONDS = 60
_TYPES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves the page of one run until it is shut down.

    Attributes:
        book: Its reviews.
        token: What every request has to name.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, book: ReviewBook, port: int = 0) -> None:
        """Listen on a port of this machine; 0 for a free one.

        Raises:
            ConfigError: If the port cannot be had.
        """
        self.book, self.token = book, secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be had ({error.strerror}); give another, or 0") from error

    @property
    def address(self) -> str:
        """Where the page is, token included."""
        return f"http://{LOOPBACK}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "judgeseye", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing: a line a request would hide the stage's own, and name the token."""

    def _answer(self, work: Any) -> None:
        try:
            self._check_sender()
            status, kind, body = work()
        except _Refused as refused:
            status, kind, body = refused.status, "application/json", _json({"error": str(refused)})
            self.close_connection = True  # what else it has sent is not read
        except (DataError, ValueError) as error:
            status, kind, body = HTTPStatus.BAD_REQUEST, "application/json", _json({"error": str(error)})
        except JudgeseyeError as error:
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", _json({"error": str(error)})
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _check_sender(self) -> None:
        """Refuse what does not come from the page."""
        port = self.server.server_port
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "sent to another host")
        if (origin := self.headers.get("Origin")) is not None and origin != f"http://{hosts[0]}":
            raise _Refused(HTTPStatus.FORBIDDEN, "sent from another origin")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise _Refused(HTTPStatus.FORBIDDEN, "sent from another site")
        given = self.headers.get(TOKEN_HEADER)
        if given is None and self.command == "GET":
            given = self._query.get("token", [""])[0]
        if not hmac.compare_digest((given or "").encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "wrong token; open the address that `review` printed")

    @property
    def _query(self) -> Mapping[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True, max_num_fields=20)

    def _get(self) -> tuple[HTTPStatus, str, bytes]:
        path, book = urlsplit(self.path).path, self.server.book
        name = "page.html" if path == "/" else path.removeprefix("/")
        if name in _TYPES:
            content = (Path(__file__).parent / name).read_bytes()
            return HTTPStatus.OK, _TYPES[name], content.replace(b"{token}", self.server.token.encode())
        if path == "/labels":
            before = self._number("before", -1)
            rows = book.index.rows(
                book.snapshot(),
                show=as_show(self._query.get("show", ["all"])[0]),
                find=self._query.get("find", [""])[0],
                after=self._number("after", -1),
                before=None if before < 0 else before,
            )
            return HTTPStatus.OK, "application/json", _json(rows)
        if path == "/label":
            place = self._number("place", -1)
            if not 0 <= place < len(book.index):
                raise _Refused(HTTPStatus.NOT_FOUND, f"no label {place}")
            starts = self._number("accepted_from", 0), self._number("rejected_from", 0)
            return HTTPStatus.OK, "application/json", _json(book.index.label(place, book.snapshot(), *starts))
        raise _Refused(HTTPStatus.NOT_FOUND, "nothing is here")

    def _post(self) -> tuple[HTTPStatus, str, bytes]:
        if urlsplit(self.path).path != "/review":
            raise _Refused(HTTPStatus.NOT_FOUND, "nothing is here")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "give JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "give its length")
        if int(length) > _MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{_MOST_BYTES:,} bytes are the most")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except RecursionError as error:
            raise DataError("it is nested too deeply") from error
        if not isinstance(asked, dict):
            raise DataError("a review is an object")
        return HTTPStatus.OK, "application/json", _json(self.server.book.add(asked))

    def _number(self, name: str, missing: int) -> int:
        text = self._query.get(name, [str(missing)])[0]
        if not text.removeprefix("-").isdecimal() or len(text) > 12:
            raise DataError(f"{name} {text[:20]!r}: is no whole number")
        return int(text)


def _json(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=True, allow_nan=False).encode()
