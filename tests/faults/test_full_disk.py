"""A disk that is full in the middle of every verb that writes: a message, nothing torn, and room is all it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jepa import checkpoint, cli
from jepa.data import Manifest
from jepa.export.to_safetensors import is_export
from tests import disk
from tests.faults.conftest import VERBS, Material, prepare
from tests.train import runs

RESULT = {"probe": "probes/small.json", "plan": "plans/line.json", "rollout": "rollouts/rollout.json"}
SHARES = (0.02, 0.3, 0.6, 0.9)  # of what is written in all: where the disk is full
SLOW = {"data check": (0.5,), "report": (0.5,), "export torch": (0.5,), "train, background": (0.6,), "probe": (0.0,)}
ALONE = ("data check", "export torch")  # too slow to be done a third time


def contents(folder: Path, verb: str) -> dict[str, Any]:
    """What a verb has made, without clock readings and what names the place."""
    out = folder / "out"
    if verb.startswith("train"):
        assert checkpoint.problem(checkpoint.latest(out)) is None
        tensors = {name: tensor.numpy().tobytes() for name, tensor in runs.tensors(out, 12).items()}
        return tensors | {"lines": runs.lines(out), "trace": runs.trace(out)}
    if verb in ("probe", "plan"):
        return {"rows": [{k: v for k, v in row.items() if k != "planning"} for row in load(out / RESULT[verb])["rows"]]}
    if verb == "rollout":
        pictures = {
            p.name: p.read_bytes() for p in sorted((out / "rollouts").rglob("*")) if p.suffix in (".png", ".gif")
        }
        assert pictures
        return pictures | {"ratios": load(out / RESULT[verb])["ratios"]}
    if verb == "report":
        return {"end": (folder / "out.html").read_text()[-8:]}
    if verb == "import":
        return {"weights": (checkpoint.latest(out) / "model.safetensors").read_bytes()}
    names = {"data check": ("*.txt",), "export torch": ("*.md",)}.get(verb, ("*",))
    files = [p for name in names for p in folder.rglob(name) if p.is_file() and p.suffix != ".json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != "README.md"}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def taken_for_whole(folder: Path, verb: str) -> bool:
    """Whether a reader would say that what is there is finished."""
    out = folder / "out"
    if verb in ("data build", "collection", "extract"):
        return (out / "manifest.json").exists() and bool(Manifest.open(out, features=verb == "extract"))
    if verb == "import":
        return (out / "config.yaml").exists()
    if verb.startswith("export"):
        return is_export(out)
    if verb == "report":
        return (folder / "out.html").exists()
    if verb in RESULT:
        return (out / RESULT[verb]).exists()
    return (folder / "out.txt").exists() if verb == "data check" else False


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk(verb: str, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = VERBS[verb]
    with disk.small(tmp_path / "whole", "64m") as whole:
        disk.needed(whole)
        prepare(verb, material, whole / "out")
        before = shutil.disk_usage(whole).used
        assert cli.main(line(material, whole / "out")) == 0, capsys.readouterr().err
        used = shutil.disk_usage(whole).used
        wanted = contents(whole, verb)
    full = 0
    with disk.small(tmp_path / "small", "64m") as small:
        prepare(verb, material, small / "out")
        for share in SLOW.get(verb, SHARES):
            disk.remount(small, f"size={max(8, int(before + share * (used - before)) // 1024)}k")
            capsys.readouterr()
            code, said = cli.main(line(material, small / "out")), capsys.readouterr().err
            if not code:  # small enough now, as the cache of features is left out
                break
            assert code == 2, said
            words = " ".join(said.split())
            assert "No space left on device" in words and "Traceback" not in words, said
            assert "ake room" in words, said
            assert not taken_for_whole(small, verb)
            full += 1
        assert not list(small.rglob(".tmp-*")) and full, "the disk was never full, or something was left"
        if verb in ALONE:
            return
        disk.remount(small, "size=64m")
        assert cli.main(line(material, small / "out")) == 0, capsys.readouterr().err
        assert contents(small, verb) == wanted
        assert not [p for p in small.rglob(".*") if p.name not in (".lock", ".step")], "nothing half-written is left"
