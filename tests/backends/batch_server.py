"""A server with OpenAI's Batch API on the loopback interface."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers import chat, completion

Body = Mapping[str, Any]
STATES = ("validating", "in_progress", "finalizing", "completed")
ENDPOINTS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}

TOP = {"Yes": -0.2, "No": -2.0, "The": -4.0}


def answered(path: str, body: Body) -> tuple[int, Body]:
    """What the model says: the last word of the prompt, or the length of every text."""
    if path.endswith("/embeddings"):
        rows = [{"index": i, "embedding": [len(t), 1.0]} for i, t in enumerate(body["input"])]
        return 200, {"data": rows, "model": "served", "usage": {"prompt_tokens": 3}}
    if body.get("messages"):
        said = body["messages"][-1]["content"].split()[-1]
        return 200, chat(said, top=TOP if body.get("logprobs") else None)
    found = {"top_logprobs": [TOP]} if body.get("logprobs") else None
    return 200, completion(body["prompt"].split()[-1], logprobs=found)


def error(status: int, message: str, code: str | None = None) -> tuple[int, Body]:
    return status, {"error": {"message": message, "type": "error", "code": code}}


@dataclass
class BatchServer:
    """Files and batches that go on by one state whenever they are looked at.

    `answers` is the model, live and in batches. `held` keeps batches in progress. `ends` overrides
    how the next batches end. `told` takes the place of what a path answers, once for every item,
    None being a dropped connection after the request was carried out.
    """

    url: str = ""
    answers: Callable[[str, Body], tuple[int, Body]] = answered
    held: bool = False
    most: int = 50_000
    ends: list[Callable[[dict[str, Any], list[Body]], list[Body]]] = field(default_factory=list)
    told: dict[str, list[tuple[int, Body] | None]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: list[tuple[str, Body]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    paid: int = 0
    page: int = 100
    lock: threading.RLock = field(default_factory=threading.RLock)

    def lines(self, batch: str) -> list[Body]:
        """The requests of a batch."""
        content = self.files[self.batches[batch]["input_file_id"]].decode()
        return [json.loads(line) for line in content.split("\n") if line]

    def get(self, path: str, query: Mapping[str, list[str]]) -> tuple[int, Body | bytes]:
        """Answer a GET below /v1."""
        if path == "/batches":
            newest = list(reversed(self.batches.values()))
            ids = [row["id"] for row in newest]
            start = ids.index(query["after"][0]) + 1 if "after" in query else 0
            size = min(self.page, int(query["limit"][0]))
            page = newest[start : start + size]
            more = start + size < len(newest)
            return 200, {"object": "list", "data": page, "has_more": more}
        if match := re.fullmatch(r"/batches/(\w+)", path):
            self._step(self.batches[match[1]])
            return 200, self.batches[match[1]]
        match = re.fullmatch(r"/files/(\w+)/content", path)
        if match and match[1] in self.files:
            return 200, self.files[match[1]]
        return error(404, f"no such thing: {path}")

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, Body]:
        """Answer a POST below /v1."""
        if path == "/files":
            fields = _parts(body, kind)
            assert fields["purpose"] == (None, b"batch")
            name, content = fields["file"]
            assert name is not None
            assert name.endswith(".jsonl")
            number = f"file{len(self.files)}"
            self.files[number] = content
            return 200, {"id": number, "object": "file", "purpose": "batch", "filename": name}
        if path == "/batches":
            return self._made(json.loads(body))
        given = json.loads(body)
        self.live.append((path, given))
        self.paid += 1
        return self.answers(path, given)

    def _made(self, body: Body) -> tuple[int, Body]:
        if body["endpoint"] not in ENDPOINTS or body["completion_window"] != "24h":
            return error(400, "invalid batch")
        if any(len(k) > 64 or len(v) > 512 for k, v in body.get("metadata", {}).items()):
            return error(400, "metadata too long")
        if body["input_file_id"] not in self.files:
            return error(400, "no such file")
        number = f"batch{len(self.batches)}"
        self.batches[number] = {
            **body,
            "id": number,
            "object": "batch",
            "status": STATES[0],
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": 1_800_000_000 + len(self.batches),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        return 200, self.batches[number]

    def _step(self, batch: dict[str, Any]) -> None:
        if batch["status"] not in STATES[:-1] or (self.held and batch["status"] == STATES[1]):
            return
        batch["status"] = STATES[STATES.index(batch["status"]) + 1]
        lines = self.lines(batch["id"])
        wrong = self._wrong(batch, lines)
        if wrong:
            batch["status"], batch["errors"] = "failed", {"object": "list", "data": [wrong]}
            return
        batch["request_counts"]["total"] = len(lines)
        if batch["status"] == STATES[-1]:
            left = self.ends.pop(0)(batch, lines) if self.ends else lines
            self._finish(batch, left)

    def _wrong(self, batch: Body, lines: list[Body]) -> Body | None:
        """What OpenAI checks before it starts."""
        ids = [line["custom_id"] for line in lines]
        if len(set(ids)) < len(ids):
            return {"code": "duplicate_custom_id", "message": "custom_id is not unique", "line": 2}
        if {line["url"] for line in lines} != {batch["endpoint"]}:
            return {"code": "mismatched_url", "message": "the url is not the endpoint", "line": 1}
        if len({line["body"]["model"] for line in lines}) != 1:
            return {"code": "mismatched_model", "message": "several models", "line": 1}
        if len(lines) > self.most:
            return {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
        return None

    def _finish(self, batch: dict[str, Any], lines: list[Body]) -> None:
        """Write the files of a batch, its lines in another order than they came."""
        good: list[Body] = []
        bad: list[Body] = []
        for line in reversed(lines):
            row = {"id": "batch_req", "custom_id": line["custom_id"], "error": None}
            if gone := line.get("gone"):
                bad.append({**row, "response": None, "error": gone})
                continue
            self.paid += 1
            status, body = self.answers(line["url"].removeprefix("/v1"), line["body"])
            response = {"status_code": status, "request_id": "req", "body": body}
            (good if status == 200 else bad).append({**row, "response": response})
        counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        batch["request_counts"] = counts
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[name] = f"file{len(self.files)}"
                text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                self.files[batch[name]] = f"{text}\n".encode()


def expires(count: int) -> Callable[[dict[str, Any], list[Body]], list[Body]]:
    """The batch expires before it comes to its last lines."""

    def end(batch: dict[str, Any], lines: list[Body]) -> list[Body]:
        batch["status"] = "expired"
        told = "This request could not be executed before the completion window expired."
        gone = {"code": "batch_expired", "message": told}
        kept = len(lines) - count
        return [*lines[:kept], *({**line, "gone": gone} for line in lines[kept:])]

    return end


def loses(
    count: int, status: str = "completed"
) -> Callable[[dict[str, Any], list[Body]], list[Body]]:
    """The batch ends without a word about its last lines."""

    def end(batch: dict[str, Any], lines: list[Body]) -> list[Body]:
        batch["status"] = status
        return lines[: len(lines) - count]

    return end


def _parts(body: bytes, kind: str) -> dict[str, tuple[str | None, bytes]]:
    """The fields of a form: file name and content by name."""
    match = re.search(r"boundary=\"?([^\";]+)", kind)
    assert match, kind
    found = {}
    for part in body.split(b"--" + match[1].encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        file = re.search(rb'filename="([^"]*)"', head)
        assert name
        found[name[1].decode()] = (file[1].decode() if file else None, content[:-2])
    return found


@contextmanager
def serve_batches() -> Iterator[BatchServer]:
    """A server in threads of its own, on a free port."""
    state = BatchServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers["content-length"])))

        def _serve(self, sent: bytes) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/v1")
            with state.lock:
                state.asked.append(f"{self.command} {path}")
                special = state.told.get(f"{self.command} {path}", [])
                if special and special[0] is not None:
                    status, body = special.pop(0)  # type: ignore[misc]
                elif self.command == "GET":
                    status, body = state.get(path, parse_qs(parts.query))
                else:
                    kind = self.headers.get("content-type", "")
                    status, body = state.post(path, sent, kind)
                if special and special[0] is None:
                    special.pop(0)
                    self.close_connection = True
                    return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join(timeout=5)
