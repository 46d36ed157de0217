"""Real runs to report on: trained, probed, and one that was never probed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jepa.masks import Masks
from jepa.monitor import Monitor
from jepa.probe.run import probe
from jepa.train import train
from tests.tiny import build_movies, run_config

SUITE = """
name: small
probes: {knn: {k: [1, 3]}, linear: {}, ridge: {targets: [x, y]}}
baselines: {pixels: {}, random: 1}
bootstrap: {resamples: 100}
published: [{encoder: elsewhere, probe: linear, value: 0.5, source: "a paper, table 1", note: on other data}]
"""


class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "source"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.raw = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").replace("\u202f", " ").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@dataclass(frozen=True)
class Runs:
    """Two seeds of one recipe, trained and probed, and a third run that was only trained."""

    first: Path
    second: Path
    unprobed: Path


@pytest.fixture(scope="session")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    suite = folder / "small.yaml"
    suite.write_text(SUITE)
    for seed in (3, 4):
        train(run_config(tiny_data, f"seed={seed}"), folder / f"seed{seed}", monitor=Monitor, trace=True, quiet=True)
        probe(folder / f"seed{seed}", suite, device="cpu", progress=False)
    shutil.copytree(folder / "seed3", folder / "unprobed", ignore=shutil.ignore_patterns("probes"))
    return Runs(folder / "seed3", folder / "seed4", folder / "unprobed")


@pytest.fixture(scope="session")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 + 6 + 8 videos of 8 frames of 24 x 24."""
    return build_movies(tmp_path_factory.mktemp("movies") / "data", 24, 6, 8)


def digest(masks: Masks, sample: int) -> str:
    """Of a sample's masks, as a trace has it."""
    found = hashlib.blake2b(digest_size=8)
    for index in (*masks.context, *masks.target):
        found.update(index[sample].numpy().tobytes() + b"/")
    return found.hexdigest()


@pytest.fixture(scope="session")
def clip_runs(movies: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A V-JEPA of clips, and a V-JEPA 2.1 of clips and images."""
    folder, found = tmp_path_factory.mktemp("clip-runs"), {}
    for name in ("vjepa", "vjepa21"):
        method = {"name": name, "encoder": {"patch": 8, "width": 32, "depth": 2, "heads": 2}}
        method["predictor"] = {"width": 32, "depth": 1, "heads": 1}
        settings = [
            "data.clip={frames: 6, stride: 1}", "data.image_size=24", "train.batch=4", "train.duration={steps: 2}",
            "optim.warmup={steps: 1}", "monitor.every={steps: 2}",
        ]  # fmt: skip
        if name == "vjepa21":
            settings.append(f"mix.stills={{path: {tiny_data}, image_size: 24, workers: 0, batch: 4}}")
        config = run_config(movies, f"method={json.dumps(method)}", *settings)
        train(config, folder / name, monitor=Monitor, trace=True, quiet=True)
        found[name] = folder / name
    return found
