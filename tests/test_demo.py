"""The whole job end to end, small: killed in the middle of training, started again, and once more when all is done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jepa.demo import IMAGES, VIDEO, chosen, demo
from jepa.errors import ConfigError
from tests.hygiene.tree import ROOT

RECIPE = ("source.samples={train: 96, val: 32, test: 48}", "shards.max_samples=32")
SMALL = (
    *("method.encoder.width=48", "method.encoder.heads=2", "method.encoder.depth=2", "method.predictor.depth=1"),
    *("method.predictor.width=24", "method.predictor.heads=2", "train.batch=8", "train.checkpoint_every.steps=5"),
    *("optim.warmup.steps=2", "monitor.every.steps=10", "monitor.samples=16", "monitor.knn_bank=32", "data.workers=0"),
)
SUITE = ("probes.linear.steps=20", "bootstrap.resamples=100")
TOKENS = ("probes.attentive.duration={steps: 4}", "probes.attentive.heads=2", "probes.attentive.lr=[0.003]")
WORLD = (
    *("method.encoder.width=32", "method.encoder.depth=1", "method.hidden=32", "method.predictor.depth=1"),
    *("train.batch=8", "train.duration.steps=6", "train.checkpoint_every.steps=3", "optim.warmup.steps=2"),
    *("monitor.every.steps=6", "monitor.samples=4", "data.workers=0"),
)
EPISODES = ("source.episodes={train: 4, val: 2, test: 3}", "source.steps=40")
FEW = ("bootstrap.resamples=100",)
STATES = (*FEW, "probes.frames.mlp.steps=40", "probes.frames.mlp.look_every=20")
PLANS = ("episodes=2", "budget=10", "planner.solver={samples: 8, elites: 2, iterations: 1}", "pictures.steps=3")
CODE = f"""
import sys
from dataclasses import replace
from jepa import cli, demo
from jepa.demo import IMAGES, VIDEO, WORLD
if __name__ == "__main__":
    images = replace(IMAGES, recipe={RECIPE}, overrides={(*SMALL, "train.duration.steps=30")}, probes={SUITE})
    video = replace(VIDEO, recipe={RECIPE}, overrides={(*SMALL, "train.duration.steps=10")}, probes={(*SUITE, *TOKENS)})
    world = replace(
        WORLD, recipe={EPISODES}, overrides={WORLD}, probes={STATES}, plans={PLANS},
        rollouts={(*FEW, "windows.horizon=3", "pictures.decoder_steps=2", "pictures.bank=16")},
    )
    demo.CHAPTERS = (images, video, world)
    sys.exit(cli.main(["demo", "--out", "demo", "--seed", "3", *sys.argv[1:]]))
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    (folder / "code.py").write_text(CODE)
    return subprocess.Popen(
        [sys.executable, "code.py", *words],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_demo_goes_on_and_writes_everything(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    first = start(tmp_path)
    while not (run / "checkpoints" / "step-5" / "COMPLETE").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (run / "summary.json").exists()

    second = start(tmp_path)
    output, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert "report.html" in output and "random init" in output and "linear" in output
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 30
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seed"] == 3 and summary["steps"] == 30
    assert {row["encoder"].split()[0] for row in summary["probe_rows"]} == {"target", "random", "pixels"}
    assert {row["probe"] for row in summary["probe_rows"]} >= {"knn", "linear", "ridge:x", "ridge:y"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in summary["probe_rows"])
    stages = {f"{chapter} {stage}" for chapter in ("images", "video") for stage in ("data", "train", "probe")}
    stages |= {f"world {stage}" for stage in ("data", "train", "probe", "roll-out", "plan")}
    assert set(summary["stage_seconds"]) == stages | {"report"}
    world = summary["chapters"]["world"]
    assert world["steps"] == 6 and {row["policy"].split(" ")[0] for row in world["plan_rows"]} >= {"random"}
    assert set(world["rollout"]["latent"]["l2"]) >= {"open_loop", "one_step", "copy"}
    assert "planned" in output.lower() or "success" in output.lower()
    video = summary["chapters"]["video"]
    assert video["steps"] == 10 and video["seed"] == 3
    names = {row["encoder"].split(" (")[0] for row in video["probe_rows"]}
    assert names == {
        *("target", "target, frames shuffled", "target, one frame held", "random init", "pixels", "image encoder")
    }
    assert {row["probe"] for row in video["probe_rows"]} >= {"linear", "attentive", "attentive:vx", "ridge:speed"}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and 'src="http' not in page
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors)) and {"probes", "video-probes", "video-verdict"} <= set(anchors)

    weights = (run / "checkpoints" / "step-30" / "model.safetensors").read_bytes()
    third = start(tmp_path, "--json")
    output, errors = third.communicate(timeout=400)
    assert third.returncode == 0, errors
    assert (run / "checkpoints" / "step-30" / "model.safetensors").read_bytes() == weights, "nothing is trained twice"
    again = json.loads((run / "summary.json").read_text())
    assert again["probe_rows"] == summary["probe_rows"] and json.loads(output) == again

    for page in ("README.md", "docs/checkpoints.md", "docs/data.md"):  # what the documents show works on this run
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
            code = re.sub("runs/(demo|digits)", "demo", block).replace("data/digits", "demo/data")
            done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {done.stderr}"


def test_a_missing_package_is_told_before_anything_is_built(tmp_path: Path) -> None:
    chapters = (IMAGES, replace(VIDEO, needs=("av", "no_such_package")))
    with pytest.raises(ConfigError, match=r"chapter 'video' needs no_such_package: pip install 'jepa\[video\]'"):
        demo(tmp_path / "demo", chapters=chapters)
    assert not (tmp_path / "demo").exists()
    assert [chapter.name for chapter in chosen(["world", "images"])] == ["images", "world"]
    with pytest.raises(ConfigError, match="no chapter 'film'; it has: images, video, world"):
        chosen(["film"])
