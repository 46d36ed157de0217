"""`jepa report --live`: the report on a local address, made anew when something of the runs has changed.

Only this machine can open it: the server listens on the loopback address and answers no request that names another
host, so that a page from elsewhere cannot read it through a name of its own. It only ever gives out the page.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jepa.errors import ConfigError, JepaError
from jepa.report import gallery, material
from jepa.report.build import page_of
from jepa.report.markup import Html, html
from jepa.report.page import Section
from jepa.report.read import Run, open_runs

LOOPBACK = "127.0.0.1"
_FILES = ("config.yaml", "metrics.jsonl", "abandoned.jsonl", "restarts.jsonl", "environment.json", "quarantine*.jsonl",
          "probes/*.json", "rollouts/*.json", "plans/*.json", "checkpoints/step-*/COMPLETE")  # fmt: skip
_SCRIPT = """
var frame=document.querySelector("iframe"),seen="";
function look(){fetch("version").then(r=>r.text()).then(v=>{
document.title=document.title.replace(/^\\(offline\\) /,"");
if(seen&&v!==seen){var y=frame.contentWindow.scrollY,h=frame.contentWindow.location.hash;
frame.onload=()=>{frame.contentWindow.scrollTo({top:y,behavior:"instant"})};
frame.src="report?"+v+h}
seen=v}).catch(()=>{if(!document.title.startsWith("(offline)"))document.title="(offline) "+document.title})}
setInterval(look,2000);look();
"""


class LiveReport:
    """The page of some runs, kept up to date by `refresh`."""

    def __init__(self, runs: Sequence[Path | str], device: str = "cpu") -> None:
        """
        Raises:
            ConfigError: not a run folder, or no such device.
        """
        self._paths, self._device = [Path(run) for run in runs], material.device(device)
        self._pictures: dict[str, list[Section]] = {}
        self.version = ""  # of the page
        self.page = ""
        self.refresh()

    def refresh(self) -> bool:
        """Make the page anew if something has changed since; whether it had."""
        version = self._state(_FILES)
        if version == self.version:
            return False
        self.page = page_of(open_runs(self._paths), {}, self._draw)
        self.version = version
        return True

    def _draw(self, runs: list[Run]) -> list[Section]:
        """Pictures take long, and only a new checkpoint or another configuration changes them."""
        version = self._state(("config.yaml", "checkpoints/step-*/COMPLETE"))
        if version not in self._pictures:
            self._pictures = {version: gallery.sections(runs, self._device)}
        return self._pictures[version]

    def _state(self, patterns: Sequence[str]) -> str:
        found = hashlib.blake2b(digest_size=8)
        for path in (p for run in self._paths for pattern in patterns for p in sorted(run.glob(pattern))):
            with contextlib.suppress(OSError):  # pruned meanwhile
                about = path.stat()
                found.update(f"{path}/{about.st_size}/{about.st_mtime_ns}\n".encode())
        return found.hexdigest()


class Server:
    """Context manager: the report at `address` while it is open.

    Raises:
        ConfigError: not a run folder, no such device, or a port that is taken.
    """

    def __init__(
        self,
        runs: Sequence[Path | str],
        port: int = 0,
        device: str = "cpu",
        every: float = 2.0,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            port: 0 takes any that is free.
            every: seconds between looks at the run folders.
            warn: told why the page could not be made anew; the one before stays.
        """
        self.report, self._every, self._warn = LiveReport(runs, device), every, warn
        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(self.report))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot listen on {LOOPBACK}:{port}: {reason}. Give another --port, or 0") from None
        self._server.daemon_threads = True
        self.address = f"http://{LOOPBACK}:{self._server.server_address[1]}/"
        self._over = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._server.serve_forever, self._follow)]

    def __enter__(self) -> Server:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Until Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)

    def _follow(self) -> None:
        while not self._over.wait(self._every):
            try:
                self.report.refresh()
            except (JepaError, OSError) as error:  # a file that was just being replaced, a folder that was deleted
                self._warn(str(error))


def _handler(report: LiveReport) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Three pages, by GET alone."""

        server_version, sys_version = "jepa", ""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost"):
                return self.send_error(403, "only under the local address")
            place = self.path.partition("?")[0]
            if place == "/":
                return self._send(_shell(), "text/html; charset=utf-8")
            if place == "/report":
                return self._send(report.page, "text/html; charset=utf-8")
            if place == "/version":
                return self._send(report.version, "text/plain; charset=utf-8")
            self.send_error(404)

        def _send(self, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the page was closed meanwhile
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal is the user's."""

    return Handler


def _shell() -> str:
    """The page around the report: it looks for a new version and keeps the place that was scrolled to."""
    from_here = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    return html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        'content="{policy}"><title>JEPA report, live</title><style>html,body,iframe{{margin:0;border:0;width:100%;'
        "height:100%;display:block}}</style></head><body><iframe src=\"report\" title=\"report\"></iframe>"
        "<script>{script}</script></body></html>\n",
        policy=from_here + "connect-src 'self'; frame-src 'self'", script=Html(_SCRIPT),
    )  # fmt: skip


__all__ = ["LiveReport", "Server"]
