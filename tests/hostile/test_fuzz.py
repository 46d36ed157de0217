"""Readers of settings, manifests and checkpoints, given trees of values that no program of ours would write.

What grows its inputs by the lines they reach (atheris) is in fuzz.py; here it runs for seconds, `make fuzz` for long.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.data.recipe import Recipe
from jepa.errors import CheckpointError, ConfigError, DataError
from jepa.plan.suite import PlanSuite
from jepa.probe.suite import Suite
from jepa.train import train
from tests import tiny
from tests.hostile.trees import places, replaced

MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
KEYS = st.sampled_from(
    [
        "method",
        "data",
        "train",
        "optim",
        "name",
        "steps",
        "source",
        "kind",
        "encoder",
        "duration",
        "clip",
        "planner",
        "",
    ]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["digits", "ijepa", "lewm", "1e400", "${x}", "../..", -1, 2**70])
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=6), inner, max_size=4)
)


@MANY
@given(st.dictionaries(KEYS, TREES, max_size=4), st.sampled_from([RunConfig, Recipe, Suite, PlanSuite]))
def test_settings(tree: dict[str, Any], cls: type[Any]) -> None:
    try:
        config.build(cls, tree)
    except ConfigError as error:
        assert len(str(error)) > 10


@MANY
@given(st.text(max_size=30) | st.tuples(KEYS, st.text(max_size=20)).map("=".join))
def test_overrides(text: str) -> None:
    try:
        config.override({"train": {"batch": 3}}, [text])
    except ConfigError as error:
        assert len(str(error)) > 10


@pytest.fixture(scope="module")
def copied(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("fuzzed") / "data"))


@MANY
@given(data=st.data())
def test_manifests(data: st.DataObject, copied: Path, tiny_data: Path) -> None:
    real = json.loads((tiny_data / "manifest.json").read_text())
    where = data.draw(st.sampled_from(list(places(real))))
    changed = json.dumps(replaced(real, where, data.draw(TREES)))
    (copied / "manifest.json").write_text(changed)
    try:
        found = Manifest.open(copied)
        for split in found.splits.values():
            split.check()
            for i in range(min(2, len(split))):
                split.read(i)
    except DataError as error:
        assert len(str(error)) > 10


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzzed") / "run"
    train(tiny.run_config(tiny_data, "train.duration={steps: 2}", "optim.warmup.steps=1"), out, quiet=True)
    return out


@MANY
@given(data=st.data(), name=st.sampled_from(["checkpoint.json", "state.json", "config.yaml"]))
def test_checkpoints(data: st.DataObject, name: str, run: Path) -> None:
    """Described and loaded: a file that was changed is noticed by its hash, the list of hashes by itself."""
    file = run / "checkpoints" / "step-2" / name
    before = file.read_bytes()
    try:
        if name == "config.yaml":
            file.write_bytes(before + data.draw(st.binary(max_size=20)))
        else:
            real = json.loads(before)
            where = data.draw(st.sampled_from(list(places(real))))
            file.write_text(json.dumps(replaced(real, where, data.draw(TREES))))
        for read in (checkpoint.describe, checkpoint.load_encoder):
            try:
                read(run / "checkpoints" / "step-2")
            except (CheckpointError, ConfigError) as error:
                assert len(str(error)) > 10
    finally:
        file.write_bytes(before)


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_grown_inputs(tmp_path: Path) -> None:
    """Every target takes its seeds and what grows out of them; what is left behind is what was kept, no crash."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--runs", "300", "--seed", "1", "--kept", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stderr.count("Done 300 runs") == len(list(tmp_path.iterdir())) == 5
    assert all(sum(1 for _ in kept.glob("[!s]*")) for kept in tmp_path.iterdir()), "nothing reached a new line"
