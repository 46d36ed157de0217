"""Last year's run folder, and next year's: another version is refused with advice, what can be read is read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jepa import config
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError, DataError
from jepa.export import describe
from jepa.plan.result import read as read_plan
from jepa.report import build_report
from tests.hostile.verbs import PROBE, SMALL, Jepa, Lab

VERSIONS = pytest.mark.parametrize("version", [0, 99, None, "two"])


@pytest.fixture
def old(lab: Lab, tmp_path: Path) -> Lab:
    """A copy of the data, the run and its features that may be changed; its run knows the copied data."""
    made = Lab(tmp_path / "alt")
    for folder in (lab.data, lab.run, lab.features):
        shutil.copytree(folder, made.root / folder.relative_to(lab.root))
    shutil.copy(lab.config, made.config)
    rewrite(made, lambda values: values["data"].update(path=str(made.data)))
    return made


def edit(file: Path, **changes: Any) -> None:
    """Entries of a JSON file changed; None takes one out."""
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")


def seal(step: Path, **changes: Any) -> None:
    """A checkpoint's manifest changed and right again about its files: what another version would have written."""
    edit(step / "checkpoint.json", **changes)
    values = json.loads((step / "checkpoint.json").read_text())
    for name, about in values["files"].items():
        data = (step / name).read_bytes()
        about.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    text = json.dumps(values)
    (step / "checkpoint.json").write_text(text + "\n")
    (step / "COMPLETE").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")


def steps(lab: Lab) -> list[Path]:
    return sorted((lab.run / "checkpoints").glob("step-*"))


def rewrite(lab: Lab, change: Callable[[dict[str, Any]], object]) -> None:
    """The run's configuration changed, in its checkpoints too."""
    for file in (lab.run / "config.yaml", *(step / "config.yaml" for step in steps(lab))):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(values)
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
    for step in steps(lab):
        seal(step)


def on_runs(lab: Lab) -> list[list[str | Path]]:
    """Every verb that reads a run's checkpoint."""
    out = lab.root / "out"
    return [
        ["inspect", lab.run],
        ["probe", lab.run, *PROBE],
        ["extract", lab.run, lab.data, "-o", out],
        ["export", lab.run, "--format", "safetensors", "-o", out],
        ["rollout", lab.run],
        ["plan", lab.run, "--suite", "tworoom"],
        ["train", lab.run, "--resume"],
        ["train", lab.run, "--extend", "steps=6"],
        ["train", lab.config, f"data.path={lab.data}", "-o", out, "--init-from", lab.run],
        ["submit", "probe", lab.run, "--suite", "digits", "--cluster", "local", "--dry-run"],
        ["submit", "train", lab.run, "--resume", "--cluster", "local", "--dry-run"],
    ]  # fmt: skip


@VERSIONS
def test_a_checkpoint_of_another_version_is_refused(version: Any, old: Lab, jepa: Jepa) -> None:
    for step in steps(old):
        seal(step, version=version)
    for words in on_runs(old):
        done = jepa(*words)
        assert done.code == 2 and "Traceback" not in done.err, (words, done.said)
        told = f"format version {version!r}, this program reads 1. Use the program version that wrote it, jepa 0.1.0"
        assert told in done.err and "step-4" in done.err, (words, done.said)
    assert not (old.root / "out").exists()
    assert jepa("watch", old.run, "--once").code == 0, (
        "lines of metrics have no version and are read as far as possible"
    )


@VERSIONS
def test_data_and_features_of_another_version_are_refused(version: Any, old: Lab, jepa: Jepa) -> None:
    for folder in (old.data, old.features):
        edit(folder / "manifest.json", version=version)
    out = old.root / "out"
    for words in (
        ["data", "show", old.data],
        ["data", "check", old.data],
        ["data", "build", "digits", "-o", old.data, *SMALL],
        ["train", old.run, "--resume"],
        ["train", old.config, "-o", out, f"data.path={old.data}"],
        ["probe", old.run, *PROBE],
        ["probe", old.features, *PROBE],
        ["extract", old.run, old.data, "-o", out],
        ["submit", "train", old.config, f"data.path={old.data}", "--cluster", "local", "--dry-run"],
    ):
        done = jepa(*words)
        assert done.code == 2 and "Traceback" not in done.err, (words, done.said)
        assert f"has version {version!r}, this program reads 1" in done.err and "build the data" in done.err, words
    assert not out.exists()


def test_a_configuration_from_before_and_from_later(old: Lab, jepa: Jepa) -> None:
    def before(values: dict[str, Any]) -> None:
        del values["health"], values["phases"], values["train"]["keep_best"], values["train"]["sharding"]

    rewrite(old, before)
    for words in (["train", old.run, "--resume"], ["probe", old.run, *PROBE], ["inspect", old.run]):
        done = jepa(*words)
        assert done.code == 0, (words, done.said)
    rewrite(old, lambda values: values.update(quantum={"qubits": 3}))
    reading = [w for w in on_runs(old) if "--init-from" not in w]
    for words in [*reading, ["report", old.run], ["show", old.run]]:
        done = jepa(*words)
        assert done.code == 2 and "unknown key 'quantum'" in done.err and "Traceback" not in done.err, (
            words,
            done.said,
        )
    rewrite(old, lambda values: (values.pop("quantum"), values["method"].update(name="superjepa")))
    for words in (["probe", old.run, *PROBE], ["train", old.run, "--resume"]):
        done = jepa(*words)
        assert done.code == 2 and "superjepa" in done.err and "Traceback" not in done.err, (words, done.said)


@pytest.mark.parametrize("state", ["[]", "{}", '{"step": 4}', '{"step": "four"}'])
def test_a_state_of_another_version(state: str, old: Lab, jepa: Jepa) -> None:
    for step in steps(old):
        (step / "state.json").write_text(state)
        seal(step)
    for words in (["train", old.run, "--resume"], ["train", old.run, "--extend", "steps=6"]):
        done = jepa(*words)
        assert done.code == 2 and "state.json" in done.err and "Traceback" not in done.err, done.said
    done = jepa("probe", old.run, *PROBE)
    assert done.code == (0 if state == '{"step": 4}' else 2) and "Traceback" not in done.err, done.said


def test_results_of_another_protocol_are_left_out_and_named(old: Lab, jepa: Jepa) -> None:
    assert jepa("probe", old.run, *PROBE, "name=seven").code == 0
    result = old.run / "probes" / "seven.json"
    shown = json.loads(jepa("report", old.run, "--json").out)["runs"][0]["probes"]
    assert "seven" in {probe["suite"] for probe in shown}
    good = json.loads(result.read_text())
    for changes, told in (
        ({"protocol": "7"}, "was measured by protocol '7', this program knows '1'"),
        ({"rows": 5}, "is not a result of jepa"),
        ({"cost": {"joules": None}}, "is not a result of jepa"),
        ({"rows": [{**good["rows"][0], "n_test": "many"}]}, "is not a result of jepa"),
    ):
        result.write_text(json.dumps(good | changes))
        page = build_report([old.run], old.root / "page.html").read_text(encoding="utf-8").replace("&#x27;", "'")
        assert "probes/seven.json" in page and told in page.replace("&#39;", "'"), changes
    plan = old.root / "plan.json"
    plan.write_text(json.dumps({"rows": [], "fingerprint": "f", "task": {}}))
    with pytest.raises(DataError, match=r"no result of `jepa plan`"):
        read_plan(plan)


def test_an_export_and_a_suite_of_another_version(lab: Lab, old: Lab, jepa: Jepa) -> None:
    record = old.run / "exports" / "timm" / "export.json"
    good = record.read_text()
    for changes in ({"model": None}, {"model": "big"}, {"checks": [1]}, {"format": None}, {"made_by": "somebody"}):
        record.write_text(good)
        edit(record, **changes)
        with pytest.raises(CheckpointError, match=r"export\.json"):
            describe(record.parent)
    suite = old.root / "suite.yaml"
    plan = lab.suite.read_text(encoding="utf-8").replace('"1"', "'0'")
    for words, text in (
        (["probe", old.run], "protocol: '0'\nprobes: {knn: {}}\n"),
        (["plan", lab.planner], plan),
        (["rollout", lab.world], "protocol: '0'\n"),
    ):
        suite.write_text(text)
        done = jepa(*words, "--suite", suite)
        assert done.code == 2 and "protocol '0'" in done.err and "program version" in done.err, done.said
    with pytest.raises(ConfigError, match="unknown key 'later'"):
        config.build(RunConfig, {"later": 1})


def test_unfinished_work_of_another_version(old: Lab, jepa: Jepa) -> None:
    for folder, name in ((old.root / "half", "journal.jsonl"), (old.root / "quarter", "journal.jsonl")):
        (folder / ".build").mkdir(parents=True)
        text = b'{"recipe": {}}\n{"split": "train", "tomorrow": 1}\n' if folder.name == "half" else b"\xff\xfe junk\n"
        (folder / ".build" / name).write_bytes(text)
        done = jepa("data", "build", "digits", "-o", folder, *SMALL)
        assert done.code == 2 and str(folder) in done.err and "Traceback" not in done.err, done.said
        assert "another version" in done.err and "Delete" in done.err
    begun = old.root / "begun"
    assert jepa("extract", old.run, old.data, "-o", begun, "--shard-of", "0/2", "--shard-samples", "16").code == 0
    (plan,) = begun.rglob("plan.json")
    for text in ("[]", "{", '{"tomorrow": 1}'):
        plan.write_text(text)
        done = jepa("extract", old.run, old.data, "-o", begun, "--shard-samples", "16")
        assert done.code == 2 and str(plan) in done.err and "Traceback" not in done.err, done.said
    assert "into another folder" in done.err
