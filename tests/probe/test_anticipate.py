"""Anticipation: the right places are asked for, at the right time, and a probe can read what the predictor says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from torch import Tensor, nn

from jepa.config import Duration
from jepa.errors import ConfigError
from jepa.methods.base import Foresight
from jepa.nn.predictor import Predictor, PredictorConfig
from jepa.probe.anticipate import (
    AnticipateConfig,
    AnticipationConfig,
    Anticipator,
    class_mean_recall,
    in_top,
    recall,
    recall_columns,
    skipped,
)
from jepa.probe.attentive import AttentiveConfig, attentive_probe
from jepa.probe.tokens import Held

GRID, TUBELET, WIDTH, TABLE = (2, 3), 2, 8, 6  # the table knows 6 times


class FrameTokens(nn.Module):
    """Clips (B, 3, T, H, W) to a token for every tubelet and place: a fixed random map of its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, WIDTH)

    def forward(self, clips: Tensor) -> Tensor:
        b, _, frames, height, width = clips.shape
        h, w = GRID
        cut = clips.view(b, 3, frames // TUBELET, TUBELET, h, height // h, w, width // w)
        return self.map(cut.mean(dim=(3, 5, 7)).permute(0, 2, 3, 4, 1).reshape(b, -1, 3))


@pytest.fixture
def encoder() -> FrameTokens:
    torch.manual_seed(0)
    return FrameTokens()


@pytest.fixture
def predictor() -> Predictor:
    """A predictor of this package: its table lists 6 times of 2 x 3 places, one after the other."""
    torch.manual_seed(1)
    return Predictor(PredictorConfig(depth=1, width=8, heads=2), WIDTH, 2, (TABLE * GRID[0], GRID[1]))


def sight(encoder: nn.Module, predict: Any, grid: tuple[int, int] = GRID, reach: int | None = None) -> Foresight:
    """Foresight without a method: a predictor of this package takes a list of places for each mask spec."""
    if isinstance(predict, nn.Module):
        model, reach = predict, TABLE if isinstance(predict, Predictor) else None
        return Foresight(encoder, lambda s, at, w: model(s, [at], [w]), lambda x: x, grid, TUBELET, reach)
    return Foresight(encoder, predict, lambda x: x, grid, TUBELET, reach)


def anticipator(encoder: nn.Module, predict: Any, config: AnticipateConfig, **more: Any) -> Anticipator:
    return Anticipator(sight(encoder, predict, **more), 4.0, config)


def clips(count: int, frames: int = 6) -> Tensor:
    return torch.rand(count, 3, frames, 4, 6, generator=torch.Generator().manual_seed(count))


def test_places_asked_for(encoder):
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def predict(seen: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
        calls.append((seen, at, wanted))
        return torch.full((*wanted.shape, WIDTH), float(len(calls)))

    model = anticipator(encoder, predict, AnticipateConfig(frames=3, steps=2))
    x = clips(2)
    out = model(x, torch.tensor([0.0, 1.1]))
    seen = encoder(x)
    assert seen.shape == (2, 18, WIDTH)  # 3 times of 6 places
    assert out.shape == (2, 18 + 2 * 12, WIDTH)  # 3 frames are 2 times
    (context, at, wanted), (later, *_) = calls
    assert torch.equal(context, seen) and at.tolist() == [list(range(18))] * 2
    assert wanted[0].tolist() == list(range(18, 30))  # right behind what was seen
    assert wanted[1].tolist() == list(range(30, 42))  # 1.1 s are 4 whole frames, 2 times later
    assert torch.equal(later[:, :6], seen[:, 12:]) and (later[:, 6:] == 1).all()  # the oldest make room
    assert torch.equal(out[:, :18], seen) and (out[:, 18:30] == 1).all() and (out[:, 30:] == 2).all()
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("encoder_too", "predictor_too", "count"), [(True, True, 24), (False, True, 6), (True, False, 18)]
)
def test_what_the_probe_reads(encoder, predictor, encoder_too, predictor_too, count):
    config = AnticipateConfig(seconds=0.5, encoder=encoder_too, predictor=predictor_too)
    assert anticipator(encoder, predictor, config)(clips(3)).shape == (3, count, WIDTH)


def test_what_is_predicted_from_and_what_is_shown_may_differ(encoder, predictor):
    """As with V-JEPA 2.1, whose predictor works on several levels side by side."""
    plain = sight(encoder, predictor)

    def predict(seen: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
        return torch.cat([plain.predict(seen[..., :WIDTH], at, wanted)] * 3, dim=2)

    levels = Foresight(
        lambda x: torch.cat([encoder(x)] * 3, dim=2), predict, lambda x: x[..., -WIDTH:], GRID, TUBELET, TABLE
    )
    for config in (AnticipateConfig(seconds=0.5), AnticipateConfig(predictor=False), AnticipateConfig(0.0, steps=2)):
        x, brighter = clips(2), lambda c: c + 1
        want = Anticipator(plain, 4.0, config)(x + 1)
        torch.testing.assert_close(Anticipator(levels, 4.0, config, brighter)(x), want)


def test_the_predictor_is_asked_as_it_was_trained(encoder, predictor):
    model = anticipator(encoder, predictor, AnticipateConfig(seconds=0.5, encoder=False))
    x = clips(2)
    at, wanted = (torch.arange(a, b).expand(2, -1) for a, b in ((0, 18), (24, 30)))  # one time is left out
    torch.testing.assert_close(model(x), predictor(encoder(x), [at], [wanted]), atol=1e-6, rtol=0)


def test_each_clip_has_its_own_time(encoder, predictor):
    model = anticipator(encoder, predictor, AnticipateConfig(encoder=False))
    x = clips(2)
    both = model(x, torch.tensor([0.0, 0.5]))
    for i, seconds in enumerate((0.0, 0.5)):
        torch.testing.assert_close(both[i : i + 1], model(x[i : i + 1], torch.tensor([seconds])), atol=1e-6, rtol=0)


def test_times_are_whole_and_rounded_down():
    seconds = torch.tensor([0.0, 0.49, 0.5, 0.99, 1.0, 1.3])
    assert skipped(seconds, 4.0, TUBELET).tolist() == [0, 0, 1, 1, 2, 2]
    assert skipped(torch.tensor([0.1, 0.3, 0.7]), 10.0, 1).tolist() == [1, 3, 7]  # in spite of rounding


def test_past_the_end_of_a_table(encoder, predictor):
    model = anticipator(encoder, predictor, AnticipateConfig(seconds=1.0))
    assert model(clips(1)).shape == (1, 24, WIDTH)
    with pytest.raises(ConfigError, match="needs positions of 7 times; this predictor knows 6.*at most 1 s ahead"):
        model(clips(1), torch.tensor([1.5]))
    with pytest.raises(ConfigError, match="shorter clips"):
        model(clips(1, frames=12), torch.tensor([0.0]))


def test_what_does_not_fit(encoder, predictor):
    with pytest.raises(ConfigError, match="frames=9 are more than the 6 frames seen"):
        anticipator(encoder, predictor, AnticipateConfig(frames=9))(clips(1))
    with pytest.raises(ConfigError, match="18 tokens are no whole number of times of 5 x 5"):
        anticipator(encoder, predictor, AnticipateConfig(), grid=(5, 5))(clips(1))
    for values in ({"seconds": -1.0}, {"frames": 0}, {"steps": 0}, {"encoder": False, "predictor": False}):
        with pytest.raises(ConfigError):
            AnticipateConfig(**values)
    for values in ({"k": 0}, {"labels": ("a", "a")}, {"probe": AttentiveConfig(targets=("x",))}):
        with pytest.raises(ConfigError):
            AnticipationConfig(**values)


class Linear(nn.Module):
    """Predicts of every place what a straight line through its last two tokens says."""

    def forward(self, seen: Tensor, at: list[Tensor], wanted: list[Tensor]) -> Tensor:
        area = GRID[0] * GRID[1]
        last, before = seen[:, -area:], seen[:, -2 * area : -area]
        ahead = (wanted[0][:, ::area] - at[0][:, -1:]) // area + 1  # (B, times)
        moved = last[:, None] + (last - before)[:, None] * ahead[..., None, None]
        return moved.flatten(1, 2)


def test_the_class_of_a_later_frame_is_read_through_the_predictor(encoder):
    """Colours drift at a steady pace; the label is whether red is above one half a second after the clip's end.

    What the predictor says of that time decides it; the last token alone (no predictor) leaves many cases open.
    """
    generator = torch.Generator().manual_seed(0)
    start, pace = torch.rand(500, generator=generator), 0.3 * torch.randn(500, generator=generator)
    times = torch.arange(3.0)
    red = start[:, None] + pace[:, None] * times
    x = red.repeat_interleave(TUBELET, dim=1).view(500, 1, 6, 1, 1).expand(-1, 3, -1, 4, 6)
    labels = (start + pace * 5 > 0.5).long()  # 1 s are 2 times behind the end, which is time 2: time 5 begins there
    right = []
    for config in (AnticipateConfig(encoder=False), AnticipateConfig(predictor=False)):
        tokens = anticipator(encoder, Linear(), config)(x)
        tokens = tokens[:, -6:]  # only the last time, of either
        parts = [(Held(tokens[a:b].unsqueeze(1)), labels[a:b]) for a, b in ((0, 250), (250, 350), (350, 500))]
        probe = AttentiveConfig(heads=1, lr=(1e-2,), weight_decay=(0.01,), duration=Duration(steps=80), batch=64)
        chances, _ = attentive_probe(parts[0], parts[1], parts[2][0], 2, probe)
        right.append(float((chances.argmax(dim=1) == parts[2][1]).double().mean()))
    assert right[0] > 0.93 and right[0] > right[1] + 0.1


def test_class_mean_recall_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores, labels = torch.tensor(rng.random((60, 7))), torch.tensor(rng.integers(0, 6, 60))  # class 6 never occurs
    first = in_top(scores, labels, 1)
    want = recall_score(labels, scores.argmax(dim=1), labels=np.arange(6), average="macro", zero_division=0)
    assert recall(first, labels) == pytest.approx(want)
    assert recall(in_top(scores, labels, 5), labels) > want and recall(in_top(scores, labels, 99), labels) == 1.0


def test_recall_is_of_classes_and_leaves_out_what_is_not_known():
    hit, labels = torch.tensor([1, 1, 0, 0, 1, 1]).bool(), torch.tensor([2, 2, 2, 5, -1, -1])
    columns = recall_columns(hit, labels)
    assert columns.sum(axis=0).tolist() == [2, 0, 3, 1] and recall(hit, labels) == pytest.approx(1 / 3)
    resampled = np.stack([columns.sum(axis=0), columns[:3].sum(axis=0)])  # the second without any sample of class 5
    assert class_mean_recall(resampled).tolist() == pytest.approx([1 / 3, 2 / 3])
