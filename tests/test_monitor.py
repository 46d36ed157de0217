"""Health: measures against closed forms, a monitor that disturbs nothing, warnings that come when they should."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from jepa import losses
from jepa.checkpoint.encoder import create
from jepa.data import Manifest, eval_batches
from jepa.data.build import build
from jepa.errors import ConfigError
from jepa.methods.base import Method
from jepa.monitor import Monitor, collapse_warnings, effective_rank, mean_cosine, spread, weight_distance
from jepa.nn.tokens import Normalise
from jepa.train import train
from tests.tiny import run_config
from tests.train.runs import assert_bit_equal, lines, tensors

# --- measures -----------------------------------------------------------------------------------------------------


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_of_one_direction_is_one():
    assert effective_rank(normal(50, 1) @ normal(1, 20, 1)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("width", [1, 2, 17])
def test_effective_rank_of_isotropic_features_is_their_width(width):
    basis, _ = torch.linalg.qr(normal(40, width))
    assert effective_rank(3.7 * basis) == pytest.approx(width, rel=1e-9)


def test_effective_rank_in_closed_form():
    # singular values 3 and 1: shares 3/4 and 1/4
    features = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(features) == pytest.approx(4 / 3**0.75, rel=1e-9)  # exp(entropy) = 4 / 3^(3/4)


def test_centring_removes_the_mean_image():
    varied = normal(200, 5)
    varied -= varied.mean(dim=0)
    features = varied + 1e3
    assert effective_rank(features) < 1.2
    assert effective_rank(features, centre=True) == pytest.approx(effective_rank(varied), rel=1e-6)
    assert effective_rank(torch.ones(10, 4), centre=True) == 0.0


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 30), columns=st.integers(1, 20), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_effective_rank_bounds_and_invariances(rows, columns, seed, scale):
    features = normal(rows, columns, seed)
    rank = effective_rank(features)
    assert 1 - 1e-9 <= rank <= min(rows, columns) + 1e-9
    rotation, _ = torch.linalg.qr(normal(columns, columns, seed + 1))
    assert effective_rank(scale * features @ rotation) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(features[torch.randperm(rows)]) == pytest.approx(rank, rel=1e-6)


def test_spread_and_dead_dimensions():
    features = torch.stack([torch.tensor([1.0, -1.0] * 50), torch.full((100,), 2.0), torch.zeros(100)], dim=1)
    found = spread(features)
    assert (found.mean, found.min, found.dead) == pytest.approx((1 / 3, 0.0, 2 / 3))


def test_mean_cosine_is_the_mean_over_pairs():
    features = normal(30, 8)
    unit = features / features.norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert mean_cosine(features) == pytest.approx(float(pairs.mean()), abs=1e-12)
    assert mean_cosine(torch.ones(5, 3)) == pytest.approx(1.0)


def test_weight_distance():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.fill_(3.0)
            q.fill_(2.0)
    assert weight_distance(a, b) == pytest.approx(0.5)
    assert weight_distance(a, a) == 0.0
    assert weight_distance(a, nn.Linear(4, 2)) is None


# --- the monitor --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tiny_data: Path) -> Manifest:
    return Manifest.open(tiny_data)


def method_of(data: Path, *overrides: str) -> Method:
    return create(run_config(data, *overrides))


def test_numbers_are_there_and_the_same_every_time(tiny_data, manifest):
    method = method_of(tiny_data)
    found, warnings = Monitor(run_config(tiny_data), manifest).run(method, 0)
    again, _ = Monitor(run_config(tiny_data), manifest).run(method, 0)
    assert found == again and warnings == []
    each = ("effective_rank", "effective_rank_centred", "token_effective_rank", "std_mean", "std_min", "dead", "cosine",
            "knn_top1")  # fmt: skip
    wanted = {f"health/{name}/{key}" for name in ("context", "target") for key in each}
    assert set(found) == wanted | {"health/loss_ratio", "health/teacher_distance"}
    assert all(isinstance(v, float) and np.isfinite(v) for v in found.values())
    assert found["health/teacher_distance"] == 0.0  # the teacher starts as a copy
    assert all(found[f"health/context/{key}"] == found[f"health/target/{key}"] for key in each)


def test_a_second_run_of_the_same_monitor_reads_the_same_images(tiny_data, manifest):
    monitor, method = Monitor(run_config(tiny_data), manifest), method_of(tiny_data)
    assert monitor.run(method, 0)[0] == monitor.run(method, 4)[0]  # the second one from memory


def test_numbers_are_those_of_the_encoders(tiny_data, manifest):
    config = run_config(tiny_data, "monitor.samples=16", "monitor.knn_bank=64")  # all of val, all of train
    method = method_of(tiny_data)
    with torch.no_grad():  # make the teacher differ from the student
        for p in method.encoders()["target"].parameters():
            p.mul_(1.1)
    found, _ = Monitor(config, manifest).run(method, 0)
    normalise = Normalise(config.data.mean, config.data.std)
    for name, encoder in method.encoders().items():
        features, labels = {}, {}
        for split in ("train", "val"):
            (batch,) = eval_batches(manifest.splits[split], (20, 20), 64)
            with torch.no_grad():
                features[split] = encoder(normalise(batch.images)).mean(dim=1)
            labels[split] = batch.labels
        assert found[f"health/{name}/effective_rank"] == pytest.approx(effective_rank(features["val"]), rel=1e-5)
        assert found[f"health/{name}/std_mean"] == pytest.approx(
            float(features["val"].std(dim=0, correction=0).mean()), rel=1e-5
        )
        votes = KNeighborsClassifier(3, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
        votes.fit(features["train"].numpy(), labels["train"])
        score = votes.score(features["val"].numpy(), labels["val"])
        assert found[f"health/{name}/knn_top1"] == pytest.approx(score)
    gap = found["health/teacher_distance"]
    assert gap == pytest.approx(0.1, rel=1e-5)


def test_loss_ratio_is_one_for_a_predictor_that_says_the_mean(tiny_data, manifest):
    config = run_config(tiny_data, "monitor.samples=16")
    method = method_of(tiny_data)
    (batch,) = eval_batches(manifest.splits["val"], (20, 20), 16)
    images = Normalise(config.data.mean, config.data.std)(batch.images)
    masks = method.sampler(config.seed)(0, batch.index.numpy())
    with torch.no_grad():
        target = method.targets(images, masks)
        project = method.predictor.predictor_proj
        ratio = losses.latent_loss(method.predict(images, masks), target) / losses.latent_loss(
            target.mean(dim=(0, 1), keepdim=True).expand_as(target), target
        )
        assert Monitor(config, manifest).run(method, 0)[0]["health/loss_ratio"] == pytest.approx(float(ratio), rel=1e-4)
        project.weight.zero_()
        project.bias.copy_(target.mean(dim=(0, 1)))
    assert Monitor(config, manifest).run(method, 0)[0]["health/loss_ratio"] == pytest.approx(1.0, rel=1e-5)


def test_running_leaves_modes_random_states_and_weights_alone(tiny_data, manifest):
    method = method_of(tiny_data).train()
    before = {name: p.clone() for name, p in method.state_dict().items()}
    modes = {name: m.training for name, m in method.named_modules()}
    assert any(modes.values()) and not all(modes.values())  # the teacher is in eval mode inside
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    Monitor(run_config(tiny_data), manifest).run(method, 0)
    assert {name: m.training for name, m in method.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(torch.equal(before[name], p) for name, p in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_training_is_bit_equal_with_and_without(tiny_data, tmp_path):
    config = run_config(tiny_data, "train.duration={steps: 6}", "monitor.every={steps: 2}")
    train(config, tmp_path / "with", monitor=Monitor, quiet=True)
    train(config, tmp_path / "without", quiet=True)
    assert_bit_equal(tensors(tmp_path / "with", 6), tensors(tmp_path / "without", 6))
    health = lines(tmp_path / "with", "health/target/effective_rank")
    assert [row["step"] for row in health] == [0, 2, 4, 6]
    assert not lines(tmp_path / "without", "health/target/effective_rank")
    assert health[-1]["health/teacher_distance"] > 0


def test_half_precision_gives_nearly_the_same_numbers(tiny_data, manifest):
    method = method_of(tiny_data)
    full, _ = Monitor(run_config(tiny_data), manifest).run(method, 0)
    half, _ = Monitor(run_config(tiny_data), manifest, autocast=torch.bfloat16).run(method, 0)
    assert half != full
    assert half["health/target/effective_rank"] == pytest.approx(full["health/target/effective_rank"], rel=0.05)


def test_double_precision_run(tiny_data, manifest):
    found, _ = Monitor(run_config(tiny_data), manifest).run(method_of(tiny_data).double(), 0)
    single, _ = Monitor(run_config(tiny_data), manifest).run(method_of(tiny_data), 0)
    assert found == pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize("override", ["monitor.knn_bank=0", "monitor.split=null", "monitor.split=nosuch"])
def test_no_knn_where_it_is_not_asked_for_or_has_no_queries(tiny_data, manifest, override):
    found, _ = Monitor(run_config(tiny_data, override), manifest).run(method_of(tiny_data), 0)
    assert "health/target/effective_rank" in found
    assert ("health/target/knn_top1" in found) == (override == "monitor.split=nosuch")


def test_queries_never_vote_for_themselves(tiny_data, manifest):
    monitor = Monitor(run_config(tiny_data, "monitor.split=train", "monitor.knn_bank=1000"), manifest)
    assert monitor.bank is not None
    assert len(monitor.queries.indices) == 8 and len(monitor.bank.indices) == 64 - 8
    assert not set(monitor.queries.indices) & set(monitor.bank.indices)


def test_images_without_labels(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    build("folder", tmp_path / "data", overrides=[f"source.path={tmp_path / 'images'}"], progress=False)
    found, _ = Monitor(run_config(tmp_path / "data"), Manifest.open(tmp_path / "data")).run(
        method_of(tmp_path / "data"), 0
    )
    assert "health/target/effective_rank" in found and "health/target/knn_top1" not in found


def test_unknown_split(tiny_data, manifest):
    with pytest.raises(ConfigError, match=r"data\.split='training' is not in the data set; it has: test, train, val"):
        Monitor(run_config(tiny_data, "data.split=training"), manifest)


def test_unreadable_held_out_images_are_left_out(tmp_path, tiny_data):
    shutil.copytree(tiny_data, tmp_path / "data")
    damaged = Manifest.open(tmp_path / "data")
    split = damaged.splits["val"]
    for i in (2, 9):
        shard, offset, length, _ = split.index[i].tolist()
        with split.shards[shard].path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(b"\0" * length)
    config = run_config(tmp_path / "data", "monitor.samples=16", "monitor.knn_bank=0")
    found, _ = Monitor(config, damaged).run(method_of(tmp_path / "data"), 0)
    good = [i for i in range(16) if i not in (2, 9)]
    method = method_of(tmp_path / "data")
    (batch,) = eval_batches(split, (20, 20), 16, indices=good)
    with torch.no_grad():
        features = method.encode(Normalise(config.data.mean, config.data.std)(batch.images)).mean(dim=1)
    assert found["health/target/effective_rank"] == pytest.approx(effective_rank(features), rel=1e-5)


def test_one_held_out_sample_is_too_few(tmp_path):
    splits = "source.samples={train: 16, val: 1, test: 1}"
    build("digits", tmp_path, overrides=["name=few", "source.size=20", "source.digit=[10, 14]", splits], progress=False)
    monitor = Monitor(run_config(tmp_path), Manifest.open(tmp_path))
    found, (said,) = monitor.run(method_of(tmp_path), 0)
    assert "one sample of split 'val' can be measured" in said and "monitor.split=null" in said
    assert found["health/target/token_effective_rank"] > 1
    assert not {"health/target/cosine", "health/target/std_mean", "health/target/dead"} & found.keys()
    assert monitor.run(method_of(tmp_path), 10)[1] == []  # said once; and no alarm


# --- warnings -----------------------------------------------------------------------------------------------------


def look(rank: float, std: float = 0.2, cosine: float = 0.9, name: str = "target") -> dict[str, float]:
    return {
        f"health/{name}/token_effective_rank": rank,
        f"health/{name}/std_mean": std,
        f"health/{name}/cosine": cosine,
    }


def replay(looks: list[dict[str, float]]) -> list[int]:
    """Places at which a warning came."""
    return [i for i, now in enumerate(looks) if collapse_warnings(looks[:i], now, i)]


# recorded every 25 steps from a run of width 96, depth 4 with momentum 0.99 and learning rate 2e-3
COLLAPSING = [
    look(r, s, c)
    for r, s, c in [
        (18.4, 0.190, 0.937),
        (18.3, 0.179, 0.946),
        (15.7, 0.144, 0.971),
        (9.78, 0.100, 0.988),
        (6.25, 0.0746, 0.993),
        (5.02, 0.0662, 0.995),
        (4.56, 0.0664, 0.995),
        (4.33, 0.0672, 0.995),
        (4.28, 0.0689, 0.994),
    ]
]
# recorded every 75 steps from the same with momentum 0.998 and learning rate 5e-4
HEALTHY = [
    look(r, s, c)
    for r, s, c in [
        (18.4, 0.190, 0.937),
        (18.5, 0.184, 0.941),
        (18.9, 0.181, 0.944),
        (20.1, 0.216, 0.919),
        (21.9, 0.308, 0.819),
        (21.3, 0.359, 0.784),
        (19.8, 0.363, 0.801),
        (19.0, 0.364, 0.807),
    ]
]


def test_recorded_collapse_is_seen_and_stays_seen():
    assert replay(COLLAPSING) == [5, 6, 7, 8]
    (first, second) = collapse_warnings(COLLAPSING[:5], COLLAPSING[5], 125)
    assert first.startswith("step 125: the target encoder is collapsing onto few directions: the effective rank of its")
    assert "is 5.0, it was 18.4" in first and "slower teacher" in first
    assert "to one point" in second and "cosine of 0.9950" in second


def test_recorded_healthy_run_raises_no_alarm():
    assert replay(HEALTHY) == []


def test_one_dip_is_forgiven_two_are_not():
    up, down = look(20.0), look(5.0)
    assert replay([up, up, down, up, up, down, up]) == []
    assert replay([up, up, down, down]) == [3]


def test_falling_after_a_rise_is_seen_though_still_above_the_start():
    assert replay([look(10.0), look(60.0), look(100.0), look(30.0), look(25.0)]) == [4]


def test_a_random_encoder_that_maps_all_images_together_is_no_alarm():
    assert replay([look(3.0, 0.05, 0.998)] * 4) == []


def test_the_student_of_a_teacher_is_not_judged():
    both = [look(20.0) | look(20.0, name="context")] + [look(20.0) | look(2.0, name="context")] * 3
    assert replay(both) == []
    assert replay([look(20.0, name="context")] + [look(2.0, name="context")] * 3) == [2, 3]  # it is, without one


def test_monitor_warns_of_an_encoder_made_constant(tiny_data, manifest):
    monitor, method = Monitor(run_config(tiny_data), manifest), method_of(tiny_data)
    assert monitor.run(method, 0)[1] == []
    with torch.no_grad():
        for p in method.encoders()["target"].parameters():
            p.zero_()
        method.encoders()["target"].norm.bias.fill_(1.0)
    found, warnings = monitor.run(method, 4)
    assert warnings == []  # the first time it may be a dip
    assert found["health/target/dead"] == 1.0 and found["health/target/cosine"] == pytest.approx(1.0)
    _, warnings = monitor.run(method, 8)
    assert len(warnings) == 2 and all(w.startswith("step 8: the target encoder is collapsing") for w in warnings)


def test_after_a_resume_the_past_is_read_from_the_run_folder(tiny_data, manifest, tmp_path):
    rows = [{"step": 0, "loss": 1.0, **look(20.0)}, {"step": 4, **look(3.0)}, {"step": 99, **look(500.0)}]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"step": 5, "heal'  # cut off by a kill
    (tmp_path / "metrics.jsonl").write_text(text)
    monitor = Monitor(run_config(tiny_data), manifest, run_dir=tmp_path)
    method = method_of(tiny_data)
    with torch.no_grad():
        for p in method.encoders()["target"].parameters():
            p.zero_()
    _, warnings = monitor.run(method, 8)
    assert len(warnings) == 1 and "it was 20.0" in warnings[0]  # step 4 was the first time; step 99 is no past


def test_features_that_are_not_finite_are_named(tiny_data, manifest):
    method = method_of(tiny_data)
    with torch.no_grad():
        next(method.encoders()["target"].parameters()).fill_(float("nan"))
    found, warnings = Monitor(run_config(tiny_data), manifest).run(method, 12)
    assert any("target encoder's features are not finite at step 12" in w for w in warnings)
    assert not [k for k in found if "/target/" in k] and "health/context/effective_rank" in found
    assert all(np.isfinite(v) for v in found.values())
