"""Which frames are blank: a pure function of a key."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data import blank
from jepa.errors import ConfigError


def test_blank_frames_depend_on_the_key_alone_and_the_first_is_there() -> None:
    g = np.arange(2000)
    some = blank.shown("blank", 3, g, 9, 0.4)
    assert some[:, 0].all() and abs((~some[:, 1:]).mean() - 0.4) < 0.02
    np.testing.assert_array_equal(some[700:710], blank.shown("blank", 3, g[700:710], 9, 0.4))
    np.testing.assert_array_equal(some[7], blank.shown("blank", 3, 7, 9, 0.4))
    np.testing.assert_array_equal(some[:, :5], blank.shown("blank", 3, g, 5, 0.4))
    others = [("blank", 4, 0, 0), ("else", 3, 0, 0), ("blank", 3, 1, 0), ("blank", 3, 0, 1)]
    for stream, seed, later, sub in others:
        assert (blank.shown(stream, seed, g + later, 9, 0.4, sub=sub) != some).mean() > 0.3


def test_a_larger_share_blanks_the_same_frames_and_more() -> None:
    g = np.arange(100)
    less, more = (blank.shown("blank", 0, g, 12, share) for share in (0.3, 0.8))
    assert (more <= less).all() and more.sum() < less.sum()
    assert blank.shown("blank", 0, g, 12, 0.0).all()


def test_frames_are_counted_since_the_last_one_seen() -> None:
    there = np.array([[True, False, False, True, False], [True] * 5])
    assert blank.since(there).tolist() == [[0, 1, 2, 0, 1], [0] * 5]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.steps\.blank="):
        blank.check_share(share, "data.steps.blank")
