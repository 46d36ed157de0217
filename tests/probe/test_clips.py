"""Several clips and views of a sample become one answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.errors import ConfigError
from jepa.probe.clips import (
    ClipsConfig,
    average_features,
    average_probabilities,
    embed_clips,
    join_clips,
    separate_clips,
)

sizes = st.integers(1, 4)


def logits(n: int, clips: int, views: int, classes: int, seed: int) -> Tensor:
    return 4 * torch.randn(n, clips, views, classes, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(n=sizes, clips=sizes, views=sizes, classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_probabilities(n, clips, views, classes, seed):
    x = logits(n, clips, views, classes, seed)
    found = average_probabilities(x)
    assert found.shape == (n, classes) and found.dtype == torch.float64
    torch.testing.assert_close(found.sum(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-12, rtol=0)
    single = x.double().softmax(dim=-1).flatten(1, 2)
    assert (found >= single.amin(dim=1) - 1e-12).all() and (found <= single.amax(dim=1) + 1e-12).all()
    # neither the order of clips nor that of views matters, nor a number added to all logits of one
    turned = x[:, torch.randperm(clips)][:, :, torch.randperm(views)] + torch.randn(n, clips, views, 1)
    torch.testing.assert_close(average_probabilities(turned), found, atol=1e-6, rtol=0)
    # as a list, sample by sample
    torch.testing.assert_close(average_probabilities(list(x)), found, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_samples_with_different_numbers_of_clips(counts, seed):
    several = [logits(1, c, v, 3, seed + i)[0] for i, (c, v) in enumerate(counts)]
    found = average_probabilities(several)
    for row, x in zip(found, several, strict=True):
        torch.testing.assert_close(row, average_probabilities(x[None])[0], atol=1e-12, rtol=0)


def test_one_confident_view_outweighs_a_hesitant_one():
    """The mean is over probabilities, not over logits."""
    x = torch.tensor([[[0.0, 20.0], [1.0, 0.0]]])
    assert average_probabilities(x)[0].tolist() == pytest.approx([0.5 * 0.7311, 1 - 0.5 * 0.7311], abs=1e-3)
    opposite = torch.tensor([[[40.0, 0.0], [0.0, 20.0], [0.0, 20.0]]])
    assert average_probabilities(opposite).argmax() == 1 and opposite.mean(dim=1).argmax() == 1 - 1


@settings(max_examples=30, deadline=None)
@given(n=sizes, clips=sizes, views=sizes, seed=st.integers(0, 1000))
def test_features_of_equal_clips_are_those_of_one(n, clips, views, seed):
    one = torch.randn(n, 1, 1, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(average_features(one.expand(n, clips, views, 5)), one[:, 0, 0], atol=1e-6, rtol=0)
    x = torch.randn(n, clips, views, 5)
    torch.testing.assert_close(average_features(x), x.mean(dim=(1, 2)), atol=1e-6, rtol=0)
    torch.testing.assert_close(average_features(list(x)), average_features(x), atol=1e-6, rtol=0)


def test_joining_keeps_a_views_clips_together():
    tokens = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4, 1).float()  # n C V N D
    joined, apart = join_clips(tokens), separate_clips(tokens)
    assert joined.shape == (2, 2, 12, 1) and apart.shape == (2, 6, 4, 1)
    assert torch.equal(joined[1, 0, :4], tokens[1, 0, 0]) and torch.equal(joined[1, 0, 8:], tokens[1, 2, 0])
    assert torch.equal(joined[0, 1, 4:8], tokens[0, 1, 1])
    assert torch.equal(apart[1, 3], tokens[1, 1, 1])


@pytest.mark.parametrize("join", [True, False])
def test_clips_go_through_the_encoder_one_by_one(join):
    seen: list[torch.Size] = []

    def embed(clips: Tensor) -> list[Tensor]:  # a token of each frame: its mean, and its square
        seen.append(clips.shape)
        mean = clips.mean(dim=(1, 3, 4))[..., None]
        return [mean, mean.square()]

    clips = torch.randn(2, 3, 2, 3, 4, 5, 5)  # n C V 3 T H W
    output, layer = embed_clips(embed, clips, join)
    assert seen == [torch.Size([12, 3, 4, 5, 5])]
    want = clips.mean(dim=(3, 5, 6))[..., None]  # n C V T 1
    torch.testing.assert_close(output, join_clips(want) if join else separate_clips(want))
    torch.testing.assert_close(layer, output.square())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of fps, stride, duration; given: none"),
        ({"fps": 8.0, "stride": 2}, "given: fps=8, stride=2"),
        ({"fps": 8.0, "clips": 0}, "clips=0"),
        ({"stride": 2, "views": 0}, "views=0 must be at least 1"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        ClipsConfig(**values)
