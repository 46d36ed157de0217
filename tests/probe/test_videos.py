"""The whole probe on real clips: a V-JEPA trained for three steps on moving digits, kept as mp4."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from jepa import config
from jepa.checkpoint import load_encoder
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest, eval_clips
from jepa.data.build import build
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.probe.anticipate import AnticipateConfig, Anticipator, Clock, predict_with
from jepa.probe.run import probe
from jepa.probe.terminal import print_table
from jepa.train import train

SUITE = """
probes:
  knn: {k: [1, 3], layers: [0]}
  ridge: {targets: [speed]}
  attentive: {heads: 2, lr: [0.003], weight_decay: [0.1], duration: {steps: 5}, targets: [vx, vy]}
features: {batch: 16, clips: {frames: 4, stride: 1, clips: 2}}
baselines: {pixels: {size: 6}, random: 1}
bootstrap: {resamples: 100}
"""
RUN = {
    "name": "clips",
    "method": {
        "name": "vjepa",
        "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    },
    "data": {"image_size": 24, "workers": 0, "clip": {"frames": 4, "stride": 1}},
    "optim": {"warmup": {"steps": 1}},
    "train": {"batch": 8, "duration": {"steps": 3}, "precision": "fp32", "trackers": [], "threads": 1},
    "monitor": {"every": {"steps": 3}, "samples": 8, "knn_bank": 0},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 train, 12 val and 16 test videos of 8 frames of 24 x 24."""
    folder = tmp_path_factory.mktemp("data") / "moving"
    small = ["source.size=24", "source.digit=[10, 14]", "source.frames=8"]
    build("moving-digits", folder, overrides=[*small, "source.samples={train: 80, val: 12, test: 16}"], progress=False)
    return folder


@pytest.fixture(scope="module")
def clip_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "clips"
    train(config.build(RunConfig, config.override(RUN, [f"data.path={videos}"])), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "clips.yaml"
    path.write_text(SUITE)
    return path


def test_rows_of_clips(clip_run, videos, suite):
    found = probe(clip_run, suite, progress=False)
    rows = {(r["encoder"], r["probe"]): r for r in found["rows"]}
    pooled, tokens = ["knn", "knn@0", "ridge:speed"], ["attentive", "attentive:vx", "attentive:vy", "attentive:vx+vy"]
    for encoder in ("target (step 3)", "random init"):
        assert [p for e, p in rows if e == encoder] == [*pooled, *tokens]
    assert [p for e, p in rows if e == "pixels (6×6)"] == ["knn", "ridge:speed"]
    about = {s["encoder"]: s for s in found["sources"]}
    assert about["target (step 3)"]["tokens"]["shape"] == [1, 2 * 2 * 9, 24]  # two clips of two times of 3 x 3 places
    assert about["pixels (6×6)"]["width"] == 3 * 4 * 6 * 6
    screen = Console(file=io.StringIO(), width=120)
    print_table(found, screen)
    assert "attentive:vx" in screen.file.getvalue()
    again = probe(clip_run, suite, progress=False)
    assert again["rows"] == found["rows"]


def test_suites_of_images_and_of_clips_are_told_apart(clip_run, suite):
    with pytest.raises(ConfigError, match=r"holds videos: say in features.clips"):
        probe(clip_run, suite, ["features.clips=null"], progress=False)


def test_views_lie_along_the_longer_side(tmp_path):
    """Frames of 24 x 40 whose columns tell their place: views of 24 x 24 see the left, the middle and the right."""
    frames = np.broadcast_to((np.arange(40, dtype=np.uint8) * 6)[None, None, :, None], (6, 24, 40, 3))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(write(np.ascontiguousarray(frames), 8, Coding(crf=1, full_colour=True)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: wide\nsource: {kind: videos}\nsplits: {fractions: {}}\n")
    made = build(recipe, tmp_path / "out", overrides=[f"source.path={tmp_path / 'in'}"], progress=False)
    (batch,) = eval_clips(made.split("train"), ClipConfig(frames=2, stride=1, clips=2), (24, 24), 4, views=3)
    assert batch.images.shape == (1, 2, 3, 3, 2, 24, 24)
    first = batch.images[0, :, :, 1, :, 12, 0].float().mean(dim=(0, 2))  # the leftmost column of each view
    assert first.tolist() == pytest.approx([0, 8 * 6, 16 * 6], abs=6)


def test_views_are_averaged_in_the_test(clip_run, suite):
    found = probe(clip_run, suite, ["features.clips.views=3"], progress=False)
    assert {r["probe"] for r in found["rows"]} >= {"knn", "attentive", "attentive:vx"}


@pytest.mark.parametrize("kind", ["rope", "sincos"])
def test_anticipation_through_a_trained_video_predictor(clip_run, videos, kind):
    split = Manifest.open(videos).splits["test"]
    settings = config.build(RunConfig, config.override(RUN, [f"method.position.kind={kind}", f"data.path={videos}"]))
    torch.manual_seed(0)
    method = base.create(settings.method, settings.data.size).eval()
    encode = load_encoder(clip_run) if kind == "rope" else method.encode
    predict, known = predict_with(method.predictor, (3, 3))
    assert known == (None if kind == "rope" else 2)  # rotary positions reach any time
    (batch,) = eval_clips(split, settings.data.clip, (24, 24), 3, np.arange(3))
    clips = batch.images[:, 0, 0] if kind == "rope" else batch.images[:, 0, 0].float() / 255
    model = Anticipator(encode, predict, Clock(8.0, 2, (3, 3)), AnticipateConfig(seconds=0.5), known)
    if known:
        with pytest.raises(ConfigError, match="needs positions of 5 times; this predictor knows 2"):
            model(clips)
        return
    tokens = model(clips, torch.tensor([0.5, 0.5, 0.0]))
    assert tokens.shape == (3, 18 + 9, 24)
    # half a second on, and right away: the same tokens asked for other places
    at = torch.arange(18).expand(3, -1)
    wanted = torch.stack([torch.arange(36, 45), torch.arange(36, 45), torch.arange(18, 27)])
    torch.testing.assert_close(tokens[:, 18:], predict(encode(clips), at, wanted), atol=1e-6, rtol=0)
    sooner = model(clips, torch.zeros(3))
    torch.testing.assert_close(sooner[2], tokens[2], atol=1e-5, rtol=0)
