"""Open-loop errors and their floors, against a world in which they are known."""

from __future__ import annotations

import pytest
import torch

from jepa.monitor.imagination import (
    Windows,
    cosine,
    courses,
    euclidean,
    imagination_metrics,
    one_step,
    seen_latents,
)
from tests.rollout import worlds


def test_errors_are_those_of_the_closed_form() -> None:
    windows, places = worlds.windows(6, seen=3, horizon=5)
    found = courses(worlds.model(gain=0.75).double(), windows)
    moved = places[:, 3:] - places[:, 2:3]  # since the last frame seen
    each = places.diff(dim=1)[:, 2:]
    error = {name: euclidean(course, found.true) for name, course in found.every().items()}
    torch.testing.assert_close(found.true[:, :, 0], places[:, 3:])
    torch.testing.assert_close(error["open_loop"], 0.25 * moved.norm(dim=-1))
    torch.testing.assert_close(error["one_step"], 0.25 * each.norm(dim=-1))
    torch.testing.assert_close(error["copy"], moved.norm(dim=-1))


def test_the_first_step_of_the_open_loop_is_a_single_step() -> None:
    windows, _ = worlds.windows(4, seen=2, horizon=4)
    found = courses(worlds.model(gain=0.5).double(), windows)
    torch.testing.assert_close(found.imagined["open_loop"][:, 0], found.one_step[:, 0])
    assert not torch.allclose(found.imagined["open_loop"][:, 2], found.one_step[:, 2])


def test_a_model_that_knows_the_world_is_wrong_only_with_wrong_actions() -> None:
    windows, _ = worlds.windows(5, seen=1, horizon=4)
    other = windows.future.roll(1, dims=0)
    found = courses(worlds.model().double(), windows, {"shuffled": other, "zero": torch.zeros_like(other)})
    error = {name: euclidean(course, found.true) for name, course in found.every().items()}
    assert float(error["open_loop"].max()) < 1e-12
    wrong = (windows.future - other).cumsum(dim=1).norm(dim=-1)
    torch.testing.assert_close(error["shuffled"], wrong)
    torch.testing.assert_close(error["zero"], error["copy"])  # nothing is done, so nothing moves
    assert float(error["copy"][:, -1].mean()) > 0.5


@pytest.mark.parametrize("look_back", [1, 2])
def test_a_model_that_looks_back_less_far_gives_the_same(look_back: int) -> None:
    windows, _ = worlds.windows(3, seen=3, horizon=4)
    whole, short = worlds.model(0.9).double(), worlds.model(0.9, look_back).double()
    torch.testing.assert_close(seen_latents(short, windows), seen_latents(whole, windows))
    torch.testing.assert_close(one_step(short, windows), one_step(whole, windows))


def test_distances_are_means_over_tokens() -> None:
    first = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    second = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    assert euclidean(first, second).tolist() == pytest.approx([(5 + 5**0.5) / 2])
    assert cosine(first, 2 * first).tolist() == pytest.approx([0.0])
    assert cosine(first[:, 1:], second[:, 1:]).tolist() == pytest.approx([1.0])


def test_metrics_for_the_monitor_compare_with_the_floors_and_disturb_nothing() -> None:
    windows, places = worlds.windows(6, seen=2, horizon=4)
    model = worlds.model(gain=0.75).double().train()
    model.encoder.eval()  # as a teacher would be
    found = imagination_metrics(model, windows)
    moved = (places[:, 2:] - places[:, 1:2]).norm(dim=-1).mean(dim=0)
    other = windows.future - 0.75 * windows.future.roll(1, dims=0)
    assert found["health/imagined_error"] == pytest.approx(0.25 * float(moved[-1]))
    assert found["health/imagined_over_copy"] == pytest.approx(0.25)
    wrong = float(other.sum(dim=1).norm(dim=-1).mean())
    assert found["health/shuffled_over_right"] == pytest.approx(wrong / (0.25 * float(moved[-1])))
    assert found["health/one_step_over_copy"] < 0.26
    assert model.training and not model.encoder.training
    alone = imagination_metrics(model, windows.rows(0, 1))
    assert "health/shuffled_over_right" not in alone and len(alone) == 3


def test_windows_without_a_future_or_an_action_are_refused() -> None:
    frames = torch.zeros(1, 4, 3, 8, 8)
    with pytest.raises(AssertionError, match="4 frames seen of 4"):
        Windows(frames, torch.zeros(1, 3, 2), None, 4)
    with pytest.raises(AssertionError, match="4 frames, but 4 actions"):
        Windows(frames, torch.zeros(1, 4, 2), None, 2)
