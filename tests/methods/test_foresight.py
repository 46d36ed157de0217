"""Looking ahead asks each method's own predictor for what its training asks: the later places of a clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jepa.masks import Masks
from jepa.methods.base import Foresight, create

SIZE = (6, 16, 24)  # three times of 2 x 3 places
AREA = 6
NAMES = ("vjepa", "vjepa21")


def method_of(name: str, **more: Any) -> Any:
    values: dict[str, Any] = {
        "name": name,
        "encoder": {"patch": 8, "tubelet": 2, "width": 24, "depth": 4, "heads": 2},
        "predictor": {"depth": 2, "width": 24, "mask_tokens": 3, "zero_init_mask_tokens": False},
    }
    torch.manual_seed(0)
    method = create(values | more, SIZE).double().eval()
    with torch.no_grad():  # away from the start, and the teacher from the student
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def foresight(method: Any, which: str = "context", token: int | None = None) -> Foresight:
    found = method.foresight(which, token)
    assert found is not None
    return found


def places(first: int, stop: int) -> Tensor:
    return torch.arange(first * AREA, stop * AREA).expand(2, -1)


def clips(frames: int = 6) -> Tensor:
    return torch.randn(2, 3, frames, *SIZE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["rope", "sincos"])
@pytest.mark.parametrize("name", NAMES)
def test_the_predictor_is_asked_as_in_training(name: str, kind: str) -> None:
    """Hiding the last two times while training is seeing the first one and asking for the places of the others."""
    method = method_of(name, position={"kind": kind})
    found, x = foresight(method), clips()
    seen = found.look(x[:, :, :2])
    with torch.no_grad():
        ahead = found.predict(seen, places(0, 1), places(1, 3))
        trained = method.predict(x, Masks([places(0, 1)], [places(1, 3)]))
    masked = trained[0][0] if name == "vjepa21" else trained[0]
    torch.testing.assert_close(ahead, masked, atol=1e-10, rtol=0)
    assert (found.grid, found.tubelet, found.reach) == ((2, 3), 2, None if kind == "rope" else 3)


@pytest.mark.parametrize("which", ["context", "target"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_encoders_output(name: str, which: str) -> None:
    method, x = method_of(name), clips(4)
    found = foresight(method, which)
    seen = found.look(x)
    torch.testing.assert_close(found.show(seen), method.encoders()[which](x), atol=1e-12, rtol=0)
    levels = 4 if name == "vjepa21" else 1
    assert seen.shape == (2, 12, 24 * levels)
    ahead = found.show(found.predict(seen, places(0, 2), places(4, 5)))
    assert ahead.shape == (2, AREA, 24), "in the encoder's width, however many levels are predicted"


@pytest.mark.parametrize("name", NAMES)
def test_places_are_places_in_time(name: str) -> None:
    """A true rotation knows differences only: what is said depends on how long after, not on where the clip is."""
    method = method_of(name, position={"layout": "paired"})
    found = foresight(method)
    seen = found.look(clips(4))
    soon, late = (found.predict(seen, places(0, 2), places(t, t + 1)) for t in (2, 7))
    shifted = found.predict(seen, places(3, 5), places(5, 6))
    torch.testing.assert_close(soon, shifted, atol=1e-10, rtol=0)
    assert (soon - late).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_token_that_was_trained_stands_for_what_is_predicted(name: str) -> None:
    method = method_of(name)
    seen = foresight(method).look(clips(4))
    trained = next(i for i, token in enumerate(method.predictor.mask_tokens) if token.requires_grad)
    ask = {t: foresight(method, token=t).predict(seen, places(0, 2), places(2, 3)) for t in (None, 0, 1, 2, 4)}
    assert torch.equal(ask[None], ask[trained]) and torch.equal(ask[1], ask[4])
    assert not torch.equal(ask[0], ask[1])


def test_a_method_without_a_way_to_look_ahead_says_so() -> None:
    values = {"name": "ijepa", "encoder": {"patch": 8, "width": 24, "depth": 1, "heads": 2}}
    assert create(values, (16, 16)).foresight("target") is None
