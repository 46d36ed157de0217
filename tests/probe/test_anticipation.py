"""`jepa probe` with an anticipation suite, on real videos: the right frames, rows by kind, baselines, errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from jepa import config
from jepa.config import Duration, RunConfig
from jepa.data import eval_clips, recipe
from jepa.data.build import build
from jepa.data.sources import configure, segments
from jepa.errors import ConfigError, DataError
from jepa.probe.anticipate import AnticipationConfig
from jepa.probe.anticipation import Actions, anticipation_probe
from jepa.probe.attentive import AttentiveConfig
from jepa.probe.dataset import ProbeData
from jepa.probe.run import probe
from jepa.probe.suite import Suite, load_suite
from jepa.probe.terminal import print_table
from jepa.probe.tokens import Held
from jepa.train import train
from tests.data.video.films import film, number_of

SUITE = """
probes:
  anticipation:
    seconds: 0.5
    k: 2
    probe: {heads: 2, lr: [0.003, 0.001], weight_decay: [0.1], duration: {steps: 4}}
features: {batch: 16, clips: {frames: 4, fps: 8}}
baselines: {random: 1}
bootstrap: {resamples: 100}
"""
RUN: dict[str, Any] = {
    "name": "ahead",
    "method": {
        "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    },
    "data": {"image_size": 24, "workers": 0, "clip": {"frames": 4, "stride": 1}},
    "optim": {"warmup": {"steps": 1}},
    "train": {"batch": 8, "duration": {"steps": 2}, "precision": "fp32", "trackers": [], "threads": 1},
    "monitor": {"every": {"steps": 2}, "samples": 8, "knn_bank": 0},
}


@pytest.fixture(scope="module")
def bouncing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 train, 16 val and 24 test videos of 16 frames of 24 x 24 at 8 per second, the edge touched in the end."""
    folder = tmp_path_factory.mktemp("data") / "bouncing"
    small = ["source.size=24", "source.digit=[10, 14]", "source.frames=16", "source.event=[9, 14]"]
    counts = ["source.samples={train: 60, val: 16, test: 24}", "source.originals={train: 0.05, val: 0.02, test: 0.01}"]
    build("bouncing-digits", folder, overrides=[*small, *counts, "source.speed=[1, 2]"], progress=False)
    return folder


@pytest.fixture(scope="module", params=["vjepa", "vjepa21"])
def trained(request, bouncing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("runs") / request.param
    values = config.override(RUN, [f"method.name={request.param}", f"data.path={bouncing}"])
    train(config.build(RunConfig, values), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "ahead.yaml"
    path.write_text(SUITE)
    return path


def test_rows_of_every_kind_and_baseline(trained: Path, suite: Path) -> None:
    found = probe(trained, suite, progress=False)
    encoders = ["target (step 2)", "target, without its predictor", "random init"]
    kinds = [f"anticipation:{kind}" for kind in ("edge", "digit", "event")]
    rows = {(r["encoder"], r["probe"], r["metric"]): r for r in found["rows"]}
    assert list(rows) == [(e, k, m) for e in encoders for k in kinds for m in ("top1", "recall2")]
    for (encoder, kind, metric), row in rows.items():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n_test"] == 24
        assert ("gap" in row) == row["baseline"] == (encoder != encoders[0])
        assert row["n_clusters"] == found["dataset"]["splits"]["test"]["originals"] < 24
        if metric == "top1" and kind.endswith("edge"):
            assert 0.25 <= row["chance"] < 1
    about = {s["encoder"]: s["tokens"]["shape"] for s in found["sources"]}
    # two times of 3 x 3 places are seen, one more is predicted
    assert about == {encoders[0]: [1, 27, 24], encoders[1]: [1, 18, 24], encoders[2]: [1, 27, 24]}
    facts = found["dataset"]["anticipation"]
    assert facts["kinds"] == {"edge": 4, "digit": 10, "event": 40} and facts["begin_too_early"]["test"] == 0
    screen = Console(file=io.StringIO(), width=140)
    print_table(found, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "anticipation:edge recall2" in text and "without its predictor" in text and " %" in text
    again = probe(trained, suite, progress=False)
    assert again["rows"] == found["rows"]


def test_the_same_on_less_of_the_clip(trained: Path, suite: Path) -> None:
    options = ["baselines.frames=[shuffled, still]", "baselines.random=0", "probes.anticipation.labels=[edge]"]
    rows = probe(trained, suite, options, progress=False)["rows"]
    less = {r["encoder"] for r in rows if r["role"] == "frames"}
    assert less == {"target, frames shuffled", "target, one frame held"}
    assert all("gap" in r for r in rows if r["encoder"] in less)


def test_other_times_are_other_numbers(trained: Path, suite: Path) -> None:
    """Nothing cached for one time is taken for another one."""
    options = ["features.tokens.keep=true", "baselines.random=0"]
    rows = [
        [r["value"] for r in probe(trained, suite, [*options, *more], progress=False)["rows"]]
        for more in ([], ["probes.anticipation.seconds=0.25"], ["probes.anticipation.steps=2"], [])
    ]
    assert rows[0] == rows[3] and rows[0] != rows[1]


def numbered(folder: Path) -> Path:
    """Segments of a video of 60 frames at 10 per second, each frame of which shows its number."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.mp4").write_bytes(film(60, rate=10))
    (folder / "in" / "b.mp4").write_bytes(film(60, rate=10))
    starts = {"train": (20, 31, 4), "val": (33, 40), "test": (25, 50, 3)}
    for split, frames in starts.items():
        lines = [f"{'ab'[i % 2]}.mp4,{'xy'[i % 2]},{f / 10},{f / 10 + 0.5}" for i, f in enumerate(frames)]
        (folder / f"{split}.csv").write_text("file,label,start,stop\n" + "\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text("name: numbers\nsource: {kind: segments, before: 1.5}\n")
    listed = "{" + ", ".join(f"{s}: {folder / s}.csv" for s in starts) + "}"
    overrides = [f"source.path={folder / 'in'}", f"source.segments={listed}"]
    build(folder / "recipe.yaml", folder / "data", overrides=overrides, progress=False)
    return folder / "data"


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_the_clip_ends_so_many_seconds_before_the_action(tmp_path: Path, seconds: float) -> None:
    data = numbered(tmp_path)
    values = {"probes": {"anticipation": {"seconds": seconds}}, "features": {"clips": {"frames": 3, "fps": 5}}}
    settings = config.build(Suite, values)
    asked = settings.probes.anticipation
    assert asked is not None and settings.features.clips is not None
    actions = Actions.of(ProbeData.open(settings, str(data)), asked)
    assert actions.kinds == {"label": 2}
    early = int(seconds > 0.35)
    assert actions.left_out == {"train": early, "val": 0, "test": early}
    ends = set()
    for part, labels in zip(actions.data.parts, actions.labels, strict=True):
        split = part.split
        (batch,) = eval_clips(
            split, settings.features.clips, (48, 64), 8, part.index, ends=actions.ends[split.name], decoder="pyav"
        )
        assert labels[:, 0].tolist() == split.labels[part.index].tolist()
        for clip in batch.images[:, 0, 0]:  # (3, T, H, W)
            numbers = [number_of(frame.permute(1, 2, 0).numpy()) for frame in clip.transpose(0, 1)]
            ends.add(numbers[-1])
            first = min(n for n in (20, 31, 4, 33, 40, 25, 50, 3) if n - round(10 * seconds) == numbers[-1])
            begin = max(0, first - 15)  # of the sample
            assert numbers == [max(begin, numbers[-1] - back) for back in (4, 2, 0)], "the first frame is held"
    wanted = {n - round(10 * seconds) for n in (20, 31, 4, 33, 40, 25, 50, 3)}
    assert ends == {n for n in wanted if n >= 0}


def test_every_kind_has_a_query_and_its_own_best_head(bouncing: Path) -> None:
    """Tokens that hold the answers: one token says the edge, another the digit; what both say is the event."""
    values = {"probes": {"anticipation": {"seconds": 0.5}}, "features": {"clips": {"frames": 4, "fps": 8}}}
    data = ProbeData.open(config.build(Suite, values), str(bouncing))
    asked = AnticipationConfig(
        0.5, k=2, labels=("digit", "edge"),
        probe=AttentiveConfig(heads=1, lr=(1e-2, 1e-6), weight_decay=(0.01,), duration=Duration(steps=150), batch=32),
    )  # fmt: skip
    actions = Actions.of(data, asked)
    assert list(actions.kinds) == ["digit", "edge"]

    def held(labels: torch.Tensor) -> Held:
        digit, edge = labels.unbind(1)
        tokens = torch.zeros(len(labels), 1, 2, 16)
        tokens[torch.arange(len(labels)), 0, 0, digit] = 5
        tokens[torch.arange(len(labels)), 0, 1, 10 + edge] = 5
        return Held(tokens)

    labels = actions.labels
    partly = (labels[0], labels[1], labels[2].clone())
    partly[2][0, 0] = -1
    actions = Actions(actions.data, actions.kinds, partly, actions.ends, actions.left_out)
    tokens = (held(labels[0]), held(labels[1]), held(labels[2]))
    found = anticipation_probe(tokens, actions, asked)
    assert found["edge"].first.float().mean() > 0.95 and found["edge"].top.all() and found["edge"].known.all()
    digit = found["digit"]
    assert digit.top[1:].float().mean() > 0.7 and not digit.known[0] and digit.known[1:].all()
    assert found["edge"].chosen["lr"] == found["digit"].chosen["lr"] == 1e-2


def test_heads_are_chosen_on_validation_not_on_test(bouncing: Path) -> None:
    """The head that is trained is always wrong on these validation samples, one that is not is right by chance."""
    values = {"probes": {"anticipation": {"seconds": 0.5}}, "features": {"clips": {"frames": 4, "fps": 8}}}
    grid = AttentiveConfig(heads=1, lr=(1e-2, 1e-6), weight_decay=(0.01,), duration=Duration(steps=80), batch=32)
    asked = AnticipationConfig(0.5, k=1, labels=("edge",), probe=grid)
    actions = Actions.of(ProbeData.open(config.build(Suite, values), str(bouncing)), asked)
    edges = [labels[:, 0] for labels in actions.labels]
    edges[1] = (edges[1] + 1) % 4
    tokens = [Held(5 * torch.nn.functional.one_hot(edge, 16).float().view(-1, 1, 1, 16)) for edge in edges]
    found = anticipation_probe((tokens[0], tokens[1], tokens[2]), actions, asked)["edge"]
    assert found.chosen["lr"] == 1e-6 and 0 < found.chosen["val"] < 1
    found = anticipation_probe((tokens[0], tokens[2], tokens[1]), Actions(
        actions.data, actions.kinds, (actions.labels[0], actions.labels[2], actions.labels[1]), actions.ends, {}
    ), asked)["edge"]  # fmt: skip
    assert found.chosen["lr"] == 1e-2 and not found.first.any()


def test_what_cannot_be_anticipated(trained: Path, suite: Path, bouncing: Path, tmp_path: Path) -> None:
    for wrong, error, words in (
        (["features.clips={stride: 2, fps: null}"], ConfigError, "looks at one clip and counts in seconds"),
        (["features.clips.clips=2"], ConfigError, "looks at one clip"),
        (["probes.knn={}"], ConfigError, "knn at all of the video: put them into suites of their own"),
        (["baselines.pixels={}"], ConfigError, "compares with random init, with the encoder alone"),
        (["probes.anticipation.labels=[edges]"], ConfigError, "edges.*edge"),
        (["probes.anticipation.onset=start"], ConfigError, "no target 'start' that says when.*it has: onset"),
        (["probes.anticipation.seconds=9"], DataError, "no labelled action that begins 9 s or more"),
        (["features.encoders=[teacher]"], ConfigError, "has context, target, not 'teacher'"),
        (["probes.anticipation.frames=8"], ConfigError, "frames=8 are more than the 4 frames seen"),
    ):
        with pytest.raises(error, match=words):
            probe(trained, suite, wrong, progress=False)


def test_a_method_of_images_is_refused(run: Path, suite: Path, bouncing: Path) -> None:
    with pytest.raises(ConfigError, match="'ijepa' does not say how it looks ahead"):
        probe(run, suite, [f"dataset={bouncing}"], progress=False)


def test_shipped_suites_fit_their_recipes(tmp_path: Path) -> None:
    """EK100's suite names the kinds of labels that its recipe makes of the columns of the official lists."""
    kind, options = configure(recipe.load("ek100").source)
    asked = load_suite("ek100").probes.anticipation
    assert kind == "segments" and isinstance(options, segments.Config) and asked is not None
    assert set(asked.labels) == set(options.labels) and options.before > asked.seconds + 32 / 8
    assert {p.metric for p in load_suite("ek100").published} == {f"recall{asked.k}"}
    load_suite("bouncing-digits")
    head = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    (tmp_path / "P01" / "videos").mkdir(parents=True)
    (tmp_path / "P01" / "videos" / "P01_01.MP4").write_bytes(film(40, rate=10))
    line = "P01_01_0,P01,P01_01,00:00:01.14,00:00:02.37,3,7"
    (tmp_path / "list.csv").write_text(f"{head}\n{line}\n")
    overrides = [f"source.path={tmp_path}", f"source.segments={tmp_path / 'list.csv'}", "splits.fractions={}"]
    found = build("ek100", tmp_path / "data", overrides=overrides, progress=False)
    train_split = found.split("train")
    assert found.kinds["action"] == ["3 7"] and train_split.kind("noun").tolist() == [7]
    assert train_split.targets["onset"].tolist() == pytest.approx([1.14]) and train_split.video[0].tolist()[1] == 8


def test_the_second_encoder_counts_too(trained: Path, suite: Path) -> None:
    options = ["features.encoders=[context, target]", "baselines.random=0", "probes.anticipation.labels=[edge]"]
    rows = probe(trained, suite, options, progress=False)["rows"]
    names = ["context (step 2)", "target (step 2)", "context, without its predictor"]
    assert [r["encoder"] for r in rows] == [n for n in names for _ in range(2)]
