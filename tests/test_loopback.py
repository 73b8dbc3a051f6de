"""The server under the fakes of services: what it says of connections that end in the middle."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler

import pytest

from tests.loopback import LoopbackServer, LoopbackService


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        raise ZeroDivisionError(self.path)


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_client_cut_is_no_error_and_a_mistake_is_one(killed: bool, capfd: pytest.CaptureFixture[str]) -> None:
    server = LoopbackServer(("127.0.0.1", 0), Handler)
    with LoopbackService(server):
        if killed:
            client = socket.create_connection(server.server_address)
            client.sendall(b"POST /cut HTTP/1.1\r\nContent-Length: 900\r\n\r\nhalf")
            time.sleep(0.1)  # or the server is told of the end before it reads
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()  # with no linger, as the system does for a killed process with unread data
            time.sleep(0.2)
        else:
            asked = http.client.HTTPConnection(*server.server_address)
            with contextlib.suppress(http.client.RemoteDisconnected):
                asked.request("POST", "/mistake", body=b"whole")
                asked.getresponse()
            asked.close()
    told = capfd.readouterr().err
    assert told == "" if killed else "ZeroDivisionError: /mistake" in told
