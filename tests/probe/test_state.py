"""The state probe: F1 as scikit-learn has it, intervals by original, what is left out, and rows in a whole suite."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import f1_score

from jepa import config
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.data.build import build
from jepa.errors import ConfigError, DataError
from jepa.probe.axes import Axes
from jepa.probe.run import probe
from jepa.probe.state import Scores, StateConfig, Variable, entropy, figure, open_variables, state_probe
from jepa.probe.terminal import print_table
from jepa.train import train
from tests.probe.test_videos import RUN


def variable(values: int, sizes: tuple[int, int, int], seed: int = 0) -> Variable:
    g = torch.Generator().manual_seed(seed)
    parts = tuple(torch.randint(values, (n,), generator=g) for n in sizes)
    return Variable("v", np.arange(float(values)), parts, entropy(parts[0], values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "average"), [("f1_weighted", "weighted"), ("f1_macro", "macro")])
def test_f1_is_scikit_learns(metric, average):
    v = variable(7, (50, 20, 120))
    found = (v.classes[2] + (torch.rand(120, generator=torch.Generator().manual_seed(1)) < 0.4).long()) % 9 % 7
    scores = Scores(np.repeat(np.arange(12), 10), [v], (200, 0.95, 0))
    interval = scores.interval([scores.counts(v, found)], metric)
    assert interval.value == pytest.approx(f1_score(v.classes[2], found, average=average))
    assert interval.low < interval.value < interval.high
    accuracy = scores.interval([scores.counts(v, found)], "top1")
    assert accuracy.value == pytest.approx(float((v.classes[2] == found).double().mean()))


def test_a_value_that_never_occurs_does_not_count():
    counts = np.array([[3.0, 0, 0, 1, 0, 0, 1, 0, 0]])  # three values, the last two untouched
    assert figure(counts, "f1_macro") == pytest.approx(6 / 8) == figure(counts, "f1_weighted")


def test_intervals_draw_whole_originals_and_gaps_are_paired():
    """Samples of an original are alike: an interval that took them for independent would be far narrower."""
    v = variable(2, (10, 10, 400))
    wrong = torch.from_numpy(np.repeat(np.arange(20) % 2, 20))  # every second original is all wrong
    found = v.classes[2] ^ wrong
    options = (500, 0.95, 0)
    clustered, single = (Scores(o, [v], options) for o in (np.repeat(np.arange(20), 20), np.arange(400)))
    wide, narrow = (s.interval([s.counts(v, found)], "top1") for s in (clustered, single))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    same = clustered.counts(v, found)
    gap = clustered.interval([same], "top1", [same])
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    best = clustered.interval([clustered.counts(v, v.classes[2])], "f1_weighted", [same])
    assert best.value == pytest.approx(1 - clustered.interval([same], "f1_weighted").value)


def test_the_mean_is_over_variables():
    a, b = variable(3, (9, 9, 60)), variable(5, (9, 9, 60), seed=2)
    scores = Scores(np.arange(60) // 6, [a, b], (100, 0.9, 0))
    guesses = [torch.zeros(60, dtype=torch.int64), b.classes[2]]
    counts = [scores.counts(v, g) for v, g in zip((a, b), guesses, strict=True)]
    each = [scores.interval([c], "f1_weighted").value for c in counts]
    assert each[1] == 1
    assert scores.interval(counts, "f1_weighted").value == pytest.approx(sum(each) / 2)


def test_entropy_in_nats():
    assert entropy(torch.arange(8), 8) == pytest.approx(np.log(8))
    assert entropy(torch.zeros(5, dtype=torch.int64), 3) == 0
    assert entropy(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_a_readable_variable_is_read_and_a_value_unknown_to_training_is_missed():
    g = torch.Generator().manual_seed(3)
    sizes = (300, 100, 100)
    v = variable(4, sizes, seed=4)
    test = v.classes[2].clone()
    test[:10] = 4  # of a value that only the test split has
    v = Variable("v", np.arange(5.0), (v.classes[0], v.classes[1], test), v.entropy)
    centres = torch.randn(5, 16, generator=g)
    x = [centres[c] + 0.2 * torch.randn(len(c), 16, generator=g) for c in v.classes]
    axes = Axes.fit(x[0])
    found, chosen = state_probe(axes, *(axes.apply(part) for part in x), v, StateConfig())
    assert (found[10:] == test[10:]).double().mean() > 0.97 and (found[:10] != 4).all()
    assert chosen["val"] > 0.97 and chosen["lr"] in StateConfig().lr


# --- a whole suite ------------------------------------------------------------------------------------------------

RECIPE = """
name: cartpole
source:
  {kind: gymnasium, env: CartPole-v1, policy: "tests.data.envs.worlds:balance", state: "tests.data.envs.worlds:bins",
   episodes: {train: 10, val: 4, test: 5}, videos: 4, frames: 6, gap: 3, frame_skip: 3, size: [24, 24]}
video: {full_colour: true}
"""
SUITE = """
probes: {state: {variables: [x_bin, angle_bin, always], metrics: [f1_weighted, top1]}}
features: {batch: 16, clips: {frames: 4, stride: 1}}
baselines: {pixels: {size: 8}, random: 1}
bootstrap: {resamples: 100}
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "recipe.yaml").write_text(RECIPE)
    return build(folder / "recipe.yaml", folder / "cartpole", progress=False).root


@pytest.fixture(scope="module")
def state_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cartpole"
    train(config.build(RunConfig, config.override(RUN, [f"data.path={videos}"])), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "state.yaml"
    path.write_text(SUITE)
    return path


def test_rows_of_every_variable_and_their_mean(state_run, suite):
    found = probe(state_run, suite, progress=False)
    assert list(found["state"]["variables"]) == ["x_bin", "angle_bin"]
    assert found["state"]["left_out"] == {"always": {"entropy": 0.0, "values": 1}}
    names = ["state", "state:x_bin", "state:angle_bin"]
    rows = {(r["encoder"], r["probe"], r["metric"]): r for r in found["rows"]}
    for encoder in ("target (step 3)", "random init", "pixels (8×8)"):
        for metric in ("f1_weighted", "top1"):
            mean, *each = (rows[encoder, name, metric] for name in names)
            assert mean["value"] == pytest.approx(np.mean([r["value"] for r in each]))
            assert mean["chance"] == pytest.approx(np.mean([r["chance"] for r in each]))
            for row in (mean, *each):
                assert row["low"] <= row["value"] <= row["high"] and row["n_clusters"] == 5 and row["n_test"] == 20
                assert ("gap" in row) == row["baseline"]
                if row["baseline"]:
                    own = rows["target (step 3)", row["probe"], metric]["value"]
                    assert row["gap"]["value"] == pytest.approx(own - row["value"])
    screen = Console(file=io.StringIO(), width=120)
    print_table(found, screen)
    text = " ".join(screen.file.getvalue().split())
    assert "state:x_bin f1_weighted" in text
    assert "State variables left out, entropy below 0.6 nats: always (0.00)." in text
    assert f"{found['state']['known']:.1%} of the test samples" in text


def test_the_report_names_the_rows(state_run, suite):
    from jepa.report import read, verdict

    probe(state_run, suite, progress=False)
    run = read.open_run(state_run)
    assert verdict.probe_title("state:ball_x", "f1_weighted") == "State probe of ball_x, weighted F1"
    assert verdict.probe_title("state", "f1_macro") == "State probe, mean over variables, macro F1"
    assert [(c.probe, c.metric) for c in verdict.headlines(run)] == [("state", "f1_weighted")]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ("probes.state.variables=[x_bim]", ConfigError, r"probes.state.variables: .*x_bin"),
        ("probes.state.variables=[x]", ConfigError, r"state variable 'x' is not discrete .*ridge"),
        ("probes.state.min_entropy=9.0", DataError, r"no state variable of .*=9 nats or more in split 'train': x_bin"),
        ("probes.state.min_entropy=-1", ConfigError, r"min_entropy: got -1"),
        ("probes.state.metrics=[]", ConfigError, r"metrics: got \[\], give at least one"),
        ("probes.state.metrics=[f2]", ConfigError, r"f1_weighted"),
    ],
)
def test_what_cannot_be_probed(state_run, suite, changes, error, words):
    with pytest.raises(error, match=words):
        probe(state_run, suite, [changes], progress=False)


def test_a_data_set_without_targets(tmp_path, videos):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    plain = build(tmp_path / "recipe.yaml", tmp_path / "out", overrides=["source.state=null"], progress=False)
    parts = [(plain.split(name), np.arange(2)) for name in ("train", "val", "test")]
    with pytest.raises(ConfigError, match=r"needs state variables .*probes.state=null, .*source.state"):
        open_variables(parts, StateConfig())
    known = Manifest.open(videos)
    whole = [(known.split(name), np.arange(len(known.split(name)))) for name in ("train", "val", "test")]
    config_ = StateConfig(variables=("x_bin", "always"), min_entropy=0)
    assert [v.name for v in open_variables(whole, config_).left_out] == ["always"], "one value is no variable"
