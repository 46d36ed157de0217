"""A real web server on the loopback: it serves ranges of files, and fails as it is told to."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections import Counter
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. `faults` says what happens to the next requests for the bytes of a file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}  # name -> what happens to its next requests, in order; "" is nothing
        self.always: dict[str, str] = {}  # name -> what happens to all of its requests
        self.asked: Counter[str] = Counter()  # name -> requests for bytes
        self.ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        path = self.server.folder / name
        fault = self.server.always.get(name, "")
        if body:
            self.server.asked[name] += 1
            if self.server.faults.get(name):
                fault = self.server.faults[name].pop(0)
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault or 404), "as it is told")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if fault == "truncate":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.wfile.write(part[:100])
            self.wfile.flush()
            time.sleep(1.5)
            self.close_connection = True
        else:
            self.wfile.write(part)
