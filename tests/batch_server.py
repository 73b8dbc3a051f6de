"""A real local HTTP server with OpenAI's `/v1/files` and `/v1/batches`, which answers requests as a script tells it to.

Objects are sent field by field as the real API sends them: files, batches with their times and counts, lines of answers
and of errors, in an order of their own.
"""

from __future__ import annotations

import email
import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.loopback import LoopbackServer, LoopbackService
from tests.scripted_server import Answer, Fault, Script, completion_body, error_body

NOW = 1_790_000_000
ALL_STATUSES = ("validating", "in_progress", "finalizing", "completed")
EXPIRED = "This request could not be executed before the completion window expired."
Outcome = Literal["completed", "expired", "cancelled", "failed"]
Lines = list[bytes]


@dataclass(frozen=True)
class Lost:
    """The server does what was asked, and then cuts the connection before it has answered."""


HttpFault = Callable[[str, str, int], Fault | Lost | None]
"""Takes method, path, and how many such calls came before."""


@dataclass
class BatchServer(LoopbackService):
    """Serves until it is left.

    Attributes:
        script: Called with each request's body and how many were answered before.
        looks: How often a batch is looked at before it is done.
        outcome: How batches end: expired and cancelled ones half way, failed ones before their first request.
        edit: Changes the lines of a file of answers or errors, given its kind.
        fault: What goes wrong with a call.
        files: Content by id.
        purposes: By id.
        batches: As sent, in the order of their making.
        paid: `custom_id` of every request that was answered, in order.
        calls: Method and path of every call.
    """

    script: Script
    looks: int = 0
    outcome: Outcome = "completed"
    edit: Callable[[str, Lines], Lines] | None = None
    fault: HttpFault | None = None
    key: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    purposes: dict[str, str] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    paid: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        super().__init__(LoopbackServer(("127.0.0.1", 0), _handler(self)))

    # --- what the API does ------------------------------------------------------------------------------------

    def add_file(self, content: bytes, purpose: str, name: str) -> dict[str, Any]:
        file_id = f"file-{len(self.files):04}"
        self.files[file_id], self.purposes[file_id] = content, purpose
        return {
            "object": "file",
            "id": file_id,
            "purpose": purpose,
            "filename": name,
            "bytes": len(content),
            "created_at": NOW,
            "expires_at": None,
            "status": "processed",
            "status_details": None,
        }

    def make_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{len(self.batches):04}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "model": None,
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": NOW + len(self.batches),
            "in_progress_at": None,
            "expires_at": NOW + 86400,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "usage": None,
            "metadata": asked.get("metadata"),
            "looks": 0,
        }
        self.batches.append(batch)
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["status"] not in ("completed", "expired", "cancelled", "failed"):
            batch["looks"] += 1
            if batch["looks"] > self.looks:
                self._end(batch)
            else:
                batch["status"] = ALL_STATUSES[min(batch["looks"] - 1, 2)]
        return batch

    def _end(self, batch: dict[str, Any]) -> None:
        requests = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        problem = self._problem(batch, requests)
        outcome = "failed" if problem else self.outcome
        batch["status"], batch[f"{outcome}_at"] = outcome, NOW + 3600
        if outcome == "failed":
            told = problem or ("Enqueued token limit reached for scripted.", "token_limit_exceeded", None)
            entry = {"code": told[1], "message": told[0], "param": None, "line": told[2]}
            batch["errors"] = {"object": "list", "data": [entry]}
            return
        done = len(requests) if outcome == "completed" else len(requests) // 2
        lines: dict[str, Lines] = {"answers": [], "errors": []}
        for number, request in enumerate(requests):
            if number < done:
                kind, response = self._answered(request["body"])
                error = None
                self.paid.append(request["custom_id"])
            else:
                kind, response = "errors", None
                error = {"code": f"batch_{outcome}", "message": EXPIRED if outcome == "expired" else "Cancelled."}
            record = {
                "id": f"batch_req_{len(self.paid):06}",
                "custom_id": request["custom_id"],
                "response": response,
                "error": error,
            }
            lines[kind].append(json.dumps(record).encode() + b"\n")
        counts = {"total": len(requests), "completed": len(lines["answers"]), "failed": len(lines["errors"])}
        batch["request_counts"] = counts
        for kind, name in (("answers", "output_file_id"), ("errors", "error_file_id")):
            if lines[kind]:
                random.Random(len(self.files)).shuffle(lines[kind])
                edited = self.edit(kind, lines[kind]) if self.edit else lines[kind]
                batch[name] = self.add_file(b"".join(edited), "batch_output", f"{batch['id']}_{kind}.jsonl")["id"]

    def _problem(self, batch: dict[str, Any], requests: list[dict[str, Any]]) -> tuple[str, str, int | None] | None:
        if len(requests) > 50_000:
            return "This batch contains too many requests.", "too_many_tasks", None
        seen: set[str] = set()
        for line, request in enumerate(requests, start=1):
            if request["custom_id"] in seen:
                return f"The custom_id {request['custom_id']} is not unique.", "duplicate_custom_id", line
            seen.add(request["custom_id"])
            if (request["method"], request["url"]) != ("POST", batch["endpoint"]):
                return "The URL provided for this request does not match the batch endpoint.", "mismatched_url", line
        return None

    def _answered(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        reply = self.script(body, len(self.paid))
        if isinstance(reply, Answer):
            status, content = 200, json.loads(completion_body(reply, body, len(self.paid)))
        else:
            status, content = reply.status, json.loads(error_body(reply.message, reply.type, reply.param, reply.code))
        kind = "answers" if status == 200 else "errors"
        return kind, {"status_code": status, "request_id": f"req_{len(self.paid):08x}", "body": content}


def _handler(owner: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            return

        def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self, method: str) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            with owner.lock:
                before = sum(call == (method, path) for call in owner.calls)
                owner.calls.append((method, path))
                fault = owner.fault(method, path, before) if owner.fault else None
                if isinstance(fault, Fault):
                    self.send(
                        fault.status, fault.body or error_body(fault.message, fault.type, fault.param, fault.code)
                    )
                    return
                if owner.key is not None and sent != owner.key:
                    told = f"Incorrect API key provided: {sent}."
                    self.send(401, error_body(told, "invalid_request_error", None, "invalid_api_key"))
                    return
                status, body = self.reply(method, path, raw)
                if isinstance(fault, Lost):
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                kind = "application/octet-stream" if path.endswith("/content") else "application/json"
                self.send(status, body, kind)

        def reply(self, method: str, path: str, raw: bytes) -> tuple[int, bytes]:
            if (method, path) == ("POST", "/v1/files"):
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                fields: dict[str, tuple[str | None, bytes]] = {}
                for part in email.message_from_bytes(head + raw).walk():
                    if name := part.get_param("name", header="content-disposition"):
                        payload = part.get_payload(decode=True)
                        assert isinstance(payload, bytes)
                        fields[str(name)] = part.get_filename(), payload
                name, content = fields["file"]
                made = owner.add_file(content, fields["purpose"][1].decode(), name or "")
                return 200, json.dumps(made).encode()
            if (method, path) == ("POST", "/v1/batches"):
                asked = json.loads(raw)
                if owner.purposes.get(asked["input_file_id"]) != "batch":
                    return 400, error_body("No such file.", "invalid_request_error", "input_file_id", None)
                return 200, _shown(owner.make_batch(asked))
            if (method, path) == ("GET", "/v1/batches"):
                query = parse_qs(urlsplit(self.path).query)
                newest = owner.batches[::-1]
                if after := query.get("after"):
                    newest = newest[[batch["id"] for batch in newest].index(after[0]) + 1 :]
                page = newest[: min(int(query.get("limit", ["20"])[0]), 3)]  # small, so that pages are turned
                listed = {
                    "object": "list",
                    "data": [json.loads(_shown(batch)) for batch in page],
                    "first_id": page[0]["id"] if page else None,
                    "last_id": page[-1]["id"] if page else None,
                    "has_more": len(page) < len(newest),
                }
                return 200, json.dumps(listed).encode()
            if method == "GET" and (found := re.fullmatch(r"/v1/batches/(\w+)", path)):
                for batch in owner.batches:
                    if batch["id"] == found[1]:
                        return 200, _shown(owner.look(batch))
                told = f"No batch found with id '{found[1]}'."
                return 404, error_body(told, "invalid_request_error", None, None)
            if method == "GET" and (found := re.fullmatch(r"/v1/files/([\w-]+)/content", path)):
                if found[1] in owner.files:
                    return 200, owner.files[found[1]]
                return 404, error_body(f"No such File object: {found[1]}", "invalid_request_error", "id", None)
            return 404, error_body(f"Invalid URL ({method} {path})", "invalid_request_error", None, None)

        def do_GET(self) -> None:
            self.answer("GET")

        def do_POST(self) -> None:
            self.answer("POST")

    return Handler


def _shown(batch: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in batch.items() if name != "looks"}).encode()
