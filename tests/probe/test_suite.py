"""Suites: shipped ones load, mistakes are named, published figures are those we know."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa import config, resources
from jepa.errors import ConfigError
from jepa.probe.attentive import AttentiveConfig
from jepa.probe.linear import LinearConfig
from jepa.probe.suite import Suite, load_suite

BENCHMARKS = (
    "ssv2",
    "k400",
    "diving48",
    "ek100",
    "imagenet-attentive",
    "ade20k",
    "nyuv2",
)  # of token probes, on others' data


PROBES = [name for name in resources.names("eval") if "probes" in config.read(resources.find("eval", name), "eval")]


@pytest.mark.parametrize("name", PROBES)
def test_shipped_suites_load(name):
    suite = load_suite(name)
    assert suite.name == name and suite.protocol == "1"
    if name in BENCHMARKS:
        assert suite.probes.tokens and suite.published
        rows = {("attentive", "top1"), ("segmentation", "miou"), ("depth", "rmse")}
        asked = {(r, m) for r, m in rows if getattr(suite.probes, r)}
        asked |= {("anticipation:action", "recall5")} if suite.probes.anticipation else set()
        assert {(p.probe, p.metric) for p in suite.published} == asked  # shown beside the rows of the suite
    elif suite.probes.anticipation:
        assert suite.baselines.random >= 1 and suite.probes.anticipation.predictor
    elif suite.probes.state:
        assert suite.baselines.random >= 1 and suite.features.clips is not None
    elif suite.probes.frames:
        assert suite.baselines.random >= 1
        assert bool(suite.published) is (suite.probes.frames.blank == 0), "nothing is published of blank frames"
    else:
        assert suite.probes.linear is not None and len(suite.probes.linear.heads()) in (4, 12, 24)
        assert suite.baselines.random >= 1


@pytest.mark.parametrize(
    ("name", "frames", "step", "clips", "heads", "epochs", "batch"),
    [
        ("ssv2", 16, 4, 2, 20, 20, 256),
        ("k400", 16, 4, 8, 20, 20, 256),
        ("diving48", 32, 2, 4, 3, 100, 128),
    ],
)
def test_video_suites_are_v_jepa_2s(name, frames, step, clips, heads, epochs, batch):
    """Its public evaluation configurations: vitl/NAME.yaml, batch over its 64 GPUs."""
    suite = load_suite(name)
    seen, probe = suite.features.clips, suite.probes.attentive
    assert seen is not None and probe is not None
    assert (seen.frames, seen.stride, seen.fps, seen.clips, seen.views, seen.join) == (
        frames, step, None, clips, 3, True,
    )  # fmt: skip
    assert (probe.depth, probe.heads, len(probe.grid()), probe.batch) == (4, 16, heads, batch)
    recipe = probe.recipe(100_000)
    assert recipe.warmup == 0 and recipe.steps == -(-epochs * 100_000 // batch)


def test_the_defaults_of_the_grid_are_v_jepa_2s():
    suite = load_suite("ssv2")
    assert suite.probes.attentive is not None
    assert suite.probes.attentive.grid() == AttentiveConfig().grid()
    assert {lr for lr, _ in AttentiveConfig().grid()} == {5e-3, 3e-3, 1e-3, 3e-4, 1e-4}
    assert {decay for _, decay in AttentiveConfig().grid()} == {0.01, 0.1, 0.4, 0.8}


def test_published_figures_of_the_token_probes():
    """Some of every column of the reference table, and that nothing stands where it has none."""
    found = {n: {p.encoder: p.value for p in load_suite(n).published} for n in BENCHMARKS}
    assert found["ssv2"]["V-JEPA 2 ViT-L"] == 0.737 and found["ssv2"]["V-JEPA 2.1 ViT-G (2B)"] == 0.777
    assert found["k400"]["V-JEPA ViT-H/16 at 384 px"] == 0.819 and found["k400"]["DINOv2 1.1B"] == 0.836
    assert found["diving48"]["V-JEPA 2 ViT-H"] == 0.898 and "V-JEPA ViT-L/16" not in found["diving48"]
    assert found["imagenet-attentive"]["V-JEPA 2.1 ViT-g (1B)"] == 0.848
    assert found["ade20k"] == {
        "V-JEPA 2 ViT-g": 0.244, "V-JEPA 2.1 ViT-g (1B)": 0.478, "V-JEPA 2.1 ViT-G (2B)": 0.479, "DINOv2 1.1B": 0.495,
    }  # fmt: skip
    assert found["nyuv2"]["V-JEPA 2.1 ViT-G (2B)"] == 0.307
    sources = {p.source for n in BENCHMARKS for p in load_suite(n).published}
    assert all("arXiv 2506.09985" in s or "arXiv 2603.14482" in s or "README" in s for s in sources)


def test_layers_of_all_probes_together():
    suite = load_suite("digits", ["probes.knn.layers=[2, last4]", "probes.linear.layers=[-1, 0, 2]"])
    assert suite.probes.layers() == (2, -4, -3, -2, -1, 0)
    assert load_suite("digits").probes.layers() == ()


def test_the_demo_suite_asks_for_what_the_demo_claims():
    suite = load_suite("digits")
    assert suite.probes.knn and suite.probes.linear and suite.probes.ridge
    assert suite.probes.ridge.targets == ("x", "y")
    assert suite.baselines.pixels is not None


def test_the_anticipation_suite_is_v_jepa_2s():
    """32 frames at 8 a second, 1 s ahead, one predicted tubelet, a probe of depth 4 with 16 heads, recall at 5."""
    suite = load_suite("ek100")
    asked, clips = suite.probes.anticipation, suite.features.clips
    assert (asked.seconds, asked.frames, asked.steps, asked.k) == (1.0, 2, 1, 5) and asked.encoder and asked.predictor
    assert (clips.frames, clips.fps, clips.clips) == (32, 8, 1)
    assert (asked.probe.depth, asked.probe.heads, asked.probe.duration.epochs) == (4, 16, 20)
    assert asked.probe.lr == (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
    figures = {p.encoder: p.value for p in suite.published}
    assert figures["V-JEPA 2 ViT-L"] == 0.327 and figures["V-JEPA 2.1 ViT-G (2B)"] == 0.408


def test_published_figures_are_fractions_with_a_source():
    figures = {p.encoder: p for p in load_suite("imagenet").published}
    assert figures["I-JEPA ViT-H/14, 300 epochs"].value == 0.793
    assert figures["I-JEPA ViT-B/16, 600 epochs"].value == 0.729
    assert all(0 < p.value < 1 and "arXiv" in p.source for p in figures.values())


def test_overrides_and_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("probes: {linear: {}}\n")
    suite = load_suite(path, ["probes.linear.steps=7", "splits.max_train=100", "probes.knn={k: [3]}"])
    assert suite.name == "mine"
    assert suite.probes.linear == LinearConfig(steps=7)
    assert suite.probes.knn is not None and suite.probes.knn.k == (3,)
    assert suite.splits.max_train == 100 and suite.probes.ridge is None


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probes: {}", "no probe is asked for"),
        ("probes: {lineer: {}}", "unknown key 'probes.lineer'. Did you mean 'linear'"),
        ("probes: {linear: {}}\nprotocol: '2'", "protocol '2' is not the one this program measures by, '1'"),
        ("probes: {linear: {}}\nprotocol: 1", "protocol 1 is not the one"),
        ("probes: {linear: {}}\nsplits: {val: test}", "three different splits"),
        ("probes: {linear: {lr: [2.0]}}", r"lr: got \[2.0\], allowed"),
        ("probes: {linear: {}}\nbootstrap: {resamples: 5}", "resamples from 100"),
        ("probes: {linear: {}}\nbaselines: {timm: [{name: resnet18}]}", "unknown key 'baselines.timm"),
        ("probes: {linear: {}}\nfeatures: {pool: cls}", "allowed: 'mean'"),
        ("probes: {linear: {layers: [last3]}}", "probes.linear.layers"),
        ("probes: {attentive: {epochs: 3}}", "unknown key 'probes.attentive.epochs'"),
        ("probes: {attentive: {duration: {epochs: 1, steps: 2}}}", "exactly one of steps, epochs, samples"),
        ("probes: {attentive: {classify: false}}", "nothing to probe"),
        ("probes: {attentive: {}}\nfeatures: {clips: {frames: 16}}", "features.clips: a clip needs exactly one"),
        ("probes: {attentive: {}}\nfeatures: {tokens: {dtype: int8}}", "features.tokens.dtype"),
        ("probes: {depth: {}}\nfeatures: {clips: {stride: 1}}", "probes.depth reads single images"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_suite(written(tmp_path, text))
    assert "suite.yaml" in str(error.value)


def test_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        load_suite("imagnet")


def test_a_suite_without_probes_cannot_be_made():
    with pytest.raises(TypeError):
        Suite()  # type: ignore[call-arg]
