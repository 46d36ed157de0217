"""State variables: what is regressed, and errors in their units."""

from __future__ import annotations

import math

import pytest
import torch

from jepa.errors import ConfigError, DataError
from jepa.probe import variables
from jepa.probe.variables import VariableConfig


def test_a_position_is_off_by_a_distance() -> None:
    place = VariableConfig("state", dims=(2, 0), unit="px")
    rows = torch.tensor([[1.0, 9.0, 5.0], [2.0, 9.0, 6.0]], dtype=torch.float64)
    assert place.columns(rows).tolist() == [[5.0, 1.0], [6.0, 2.0]]
    assert place.error(rows, torch.tensor([[5.0, 1.0], [9.0, 6.0]])).tolist() == [0.0, 5.0]


@pytest.mark.parametrize(("period", "turn"), [(360.0, 1.0), (2 * math.pi, math.pi / 180)])
def test_an_angle_is_off_by_the_shorter_way_round(period: float, turn: float) -> None:
    angle = VariableConfig("state", kind="angle", period=period)
    truth = turn * torch.tensor([[359.0], [10.0], [-170.0]], dtype=torch.float64)
    told = torch.deg2rad(torch.tensor([1.0, 350.0, 185.0], dtype=torch.float64))
    columns = torch.stack([0.5 * told.sin(), 0.5 * told.cos()], dim=1)  # the length says nothing
    assert angle.error(truth, columns).tolist() == pytest.approx([2.0, 20.0, 5.0])
    assert angle.error(truth, angle.columns(truth)).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert angle.shown == "°"


def test_columns_lie_where_they_are_said_to() -> None:
    asked = {"a": VariableConfig("x", kind="angle"), "b": VariableConfig("y", dims=(1,)), "c": VariableConfig("y")}
    arrays = {"x": torch.rand(5, 2).double(), "y": torch.rand(5, 3).double()}
    found, places = variables.targets(asked, arrays, "test"), variables.places(asked, arrays)
    assert found.shape == (5, 8) and [places[n] for n in "abc"] == [slice(0, 4), slice(4, 5), slice(5, 8)]
    assert torch.equal(found[:, places["b"]], arrays["y"][:, 1:2])
    assert torch.equal(found[:, places["a"]], torch.cat([arrays["x"].sin(), arrays["x"].cos()], dim=1))


def test_what_cannot_be_probed_is_named() -> None:
    asked = {"agent": VariableConfig("place")}
    with pytest.raises(ConfigError, match=r"variables\.agent: .*places"):
        variables.check(asked, {"places": 2}, "variables")
    with pytest.raises(ConfigError, match=r"dims=\[0, 4\], but array 'place' has 2"):
        variables.check({"agent": VariableConfig("place", (0, 4))}, {"place": 2}, "variables")
    with pytest.raises(DataError, match="'agent' cannot be read off in split 'val'"):
        variables.targets(asked, {"place": torch.tensor([[1.0, 2.0], [1.0, 3.0]])}, "val")
    with pytest.raises(DataError, match="must be finite and vary"):
        variables.targets(asked, {"place": torch.tensor([[1.0], [float("nan")]])}, "val")
    with pytest.raises(ConfigError, match="different numbers from 0"):
        VariableConfig("place", dims=(1, 1))
    with pytest.raises(ConfigError, match="period=0"):
        VariableConfig("place", kind="angle", period=0)
