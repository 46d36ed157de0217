"""Suites: shipped ones load, mistakes are named, published figures are those we know."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa import resources
from jepa.errors import ConfigError
from jepa.probe.linear import LinearConfig
from jepa.probe.suite import Suite, load_suite


@pytest.mark.parametrize("name", resources.names("eval"))
def test_shipped_suites_load(name):
    suite = load_suite(name)
    assert suite.name == name and suite.protocol == "1"
    assert suite.probes.linear is not None and len(suite.probes.linear.heads()) in (12, 24)
    assert suite.baselines.random >= 1


def test_the_demo_suite_asks_for_what_the_demo_claims():
    suite = load_suite("digits")
    assert suite.probes.knn and suite.probes.linear and suite.probes.ridge
    assert suite.probes.ridge.targets == ("x", "y")
    assert suite.baselines.pixels is not None


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
