"""`--push` against a hub on this machine, which speaks what huggingface_hub asks of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jepa import cli
from jepa.errors import ConfigError
from jepa.export.write import export
from tests.export import runs

TOKEN = "hf_of_this_test"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub to httpx
LARGE = ".safetensors"  # goes by the protocol for large files


class Hub(ThreadingHTTPServer):
    """Repositories in memory. `refuse`: answer commits with 403."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse = False


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else f"me/{given['name']}"
            if name in hub.files:
                return self.answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.files[name] = {}
            return self.answer(200, {"url": f"{hub.url}/{name}", "id": name, "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            asked = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "lfs" if f.endswith(LARGE) else "regular"} for f in asked]
            return self.answer(200, {"files": [m | {"shouldIgnore": False} for m in modes]})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            if hub.refuse:
                return self.answer(403, {"error": "You have read access but not write access"})
            return self.commit(path.split("/")[3:5], body)
        return self.answer(404, {"error": f"no {path} here"})

    def commit(self, repository: list[str], body: bytes) -> None:
        name = "/".join(repository)
        files = self.server.files[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = "0" * 40
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(200, {})

    def answer(self, status: int, values: dict[str, Any]) -> None:
        text = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # large files by plain HTTP
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("run") / "run", "ijepa-vit-b16")


def test_the_hub_holds_what_the_folder_holds(hub: Hub, run: Path, tmp_path: Path) -> None:
    call = ["export", str(run), "--format", "transformers", "--out", str(tmp_path / "out"), "--push", "me/encoder"]
    assert cli.main(call) == 0
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert hub.files == {"me/encoder": written} and len(hub.objects) == 1, "the weights went as a large file"
    assert {"model.safetensors", "config.json", "README.md", "export.json"} <= written.keys()
    assert cli.main([*call, "--force"]) == 0, "a repository that is there already is written to"


@pytest.mark.parametrize("case", ["token", "no token", "no permission", "no connection"])
def test_what_the_hub_refuses_is_told_and_the_folder_stays(
    case: str, hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuse = case == "no permission"
    if case == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if case == "no connection":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError, match=r"is written, but uploading it to me/mine failed: .*hf auth login") as told:
        export(run, "safetensors", tmp_path / "out", to_hub="me/mine")
    shown = {"token": "401", "no token": "401", "no permission": "403", "no connection": "Connect"}[case]
    assert shown in str(told.value) and "hf upload me/mine" in str(told.value)
    assert TOKEN not in str(told.value)
    assert (tmp_path / "out" / "README.md").is_file() and not any(hub.files.values())


def test_a_name_that_is_none_is_refused_before_anything_is_made(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="USER/NAME"):
        export(run, "safetensors", tmp_path / "out", to_hub="no-user")
    assert not (tmp_path / "out").exists()
