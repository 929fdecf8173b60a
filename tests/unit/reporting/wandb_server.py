"""A small Weights & Biases server: what a run sends is kept, and it can fail in all the ways a real one does.

It speaks as much of the protocol as a run needs: where a run stands (RunResumeStatus), its beginning (UpsertBucket), its files, its stream of rows.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """Listens on a free port of this machine; `rows` are the history lines of each run, as they came.

    `mode`: works; 500 (every answer); hangs (each answer takes half a minute); silent (accepts, never reads); resets (every connection);
    refuses (the key).
    """

    def __init__(self, mode: str = "works") -> None:
        self.mode = mode
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.received = b""
        self._closing = threading.Event()
        self._http = _QuietServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send wandb here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self._http.server_address[1]}", "WANDB_API_KEY": KEY}

    def close(self) -> None:
        """Stop listening; what hangs is let go."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def lines(self, run: str) -> list[int]:
        """The numbers of the rows of a run, in order of arrival."""
        return [row["_step"] for row in self.rows.get(run, [])]

    def answer(self, path: str, body: bytes) -> Any:
        """What a working server answers."""
        self.received += body
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[-2], json.loads(body))
        if path != "/graphql":
            return {}
        query = json.loads(body)
        run, operation = query["variables"].get("name"), query["operationName"]
        if operation == "RunResumeStatus":
            return {"data": {"model": {"id": "p", "name": "slayer", "entity": {"id": "e", "name": "me"}, "bucket": self._standing(run)}}}
        if operation == "UpsertBucket":
            inserted = run not in self.rows
            self.rows.setdefault(run, [])
            if query["variables"].get("config"):
                self.configs[run] = json.loads(query["variables"]["config"])
            project = {"id": "p", "name": "slayer", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": run, "displayName": run, "project": project, "historyLineCount": len(self.rows[run])}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": self.environment["WANDB_BASE_URL"] + "/upload"} for name in query["variables"]["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def _standing(self, run: str) -> dict[str, Any] | None:
        if run not in self.rows:
            return None
        rows = self.rows[run]
        return {
            "id": "b", "name": run, "displayName": run, "summaryMetrics": json.dumps(rows[-1] if rows else {}), "historyLineCount": len(rows),
            "historyTail": json.dumps([json.dumps(rows[-1])] if rows else []), "eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0,
            "config": json.dumps(self.configs.get(run, {})), "tags": [], "notes": None, "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip

    def _stream(self, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        files = sent.get("files") or {}
        if summary := files.get("wandb-summary.json"):
            self.summaries[run] = json.loads(summary["content"][0])
        history = files.get("wandb-history.jsonl")
        if history is not None:
            # The offset says behind which line these rows stand: what came twice is kept once, as the service does.
            rows = self.rows.setdefault(run, [])
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        return {"exitcode": None, "limits": {}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                if server.mode == "silent":
                    server._closing.wait(60)
                elif server.mode == "resets":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    return super().handle_one_request()
                self.close_connection = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.requests += 1
                mode = server.mode
                if mode == "hangs":
                    server._closing.wait(30)
                if mode == "resets":
                    self.close_connection = True
                    return
                status = {"works": 200, "refuses": 401}.get(mode, 500)
                answer = json.dumps(server.answer(self.path, body) if status == 200 else {"errors": [{"message": "no"}]}).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    self.close_connection = True

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that is killed breaks its connection: that is what is tested."""


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    """Whether a condition holds within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
