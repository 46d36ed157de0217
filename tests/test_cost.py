"""Operations counted on the meta device equal the formula of the benchmark."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from jepa import config, cost
from jepa.bench.flops import step_flops
from jepa.bench.step import Ours
from jepa.config import RunConfig
from jepa.methods.base import Method, Output, create
from tests.tiny import VALUES


def make(*overrides: str, **sections: Any) -> RunConfig:
    return config.build(RunConfig, config.override(VALUES | sections, ["data.path=none", *overrides]))


@pytest.mark.parametrize("overrides", [(), ("method.masks.targets=2", "train.batch=12", "train.micro_batch=3")])
def test_counted_operations_follow_the_formula(overrides: tuple[str, ...]) -> None:
    run = make(*overrides)
    ours = Ours(run.method, run.data.image_size, torch.device("cpu"), torch.float32)
    sampler = create(run.method, run.data.image_size).sampler(run.seed)
    assert sampler is not None
    wanted = []
    for step in range(2):
        masks = sampler(step, np.arange(2, dtype=np.int64))
        sizes = [[m.shape[1] for m in kind] for kind in (masks.context, masks.target)]
        wanted.append(step_flops(ours.geometry, run.train.batch, *sizes).total)
    assert cost.step_flops(run) == pytest.approx(fmean(wanted), rel=1e-12)


class Peeking(Method):
    """Looks at a value while it computes, which the meta device has none of."""

    Config = type(create(dict(VALUES["method"]), (20, 20))).Config

    def __init__(self, options: Any, image_size: tuple[int, int]) -> None:
        super().__init__(options, image_size)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, masks: Any, schedule: Any, batch: Any = None) -> Output:
        return Output(self.scale * float(images.sum()))


def test_a_method_that_cannot_be_counted_still_trains() -> None:
    assert cost.step_flops(make(method={"name": "tests.test_cost:Peeking"})) is None


def test_what_encoding_and_imagining_take() -> None:
    """Against the products that they consist of: a frame is one vector, a step of the future one pass of a block."""
    run = make("method.encoder.depth=1")
    tokens, width, patch = 25, 32, 4 * 4 * 3
    block = 4 * 2 * width * width + 2 * 2 * tokens * width + 2 * 2 * width * 4 * width  # attention, two products, MLP
    assert cost.encode_flops(run) == tokens * (2 * patch * width + block)
    assert cost.imagine_flops(run) is None, "no world model"
    small = ["data.path=none", "data.steps={action: action}", "method.space.action=2"]
    world = config.load("lewm", small, ["debug"])
    one, three = cost.imagine_flops(world, 1), cost.imagine_flops(world, 3)
    assert one is not None and three is not None and 0 < three < one, "what was imagined before is not done again"
