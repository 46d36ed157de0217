from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa import keyed


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # known answers published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], want: tuple[int, ...]) -> None:
    words = keyed.philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == want


@given(st.integers(0, 2**63 - 1), st.integers(1, 20), st.integers(0, 1000), st.integers(0, 99))
def test_a_number_depends_only_on_its_key(g: int, draws: int, other: int, sub: int) -> None:
    alone = keyed.uniform("s", 7, g, draws, sub=sub)
    with_others = keyed.uniform("s", 7, np.array([other, g]), draws + 3, sub=np.array([0, sub]))
    np.testing.assert_array_equal(alone, with_others[1, :draws])
    assert ((alone > 0) & (alone < 1)).all()


def test_streams_seeds_indices_and_subs_are_independent() -> None:
    g = np.arange(20000)
    base = keyed.uniform("a", 0, g, 2)
    others = [keyed.uniform("b", 0, g, 2), keyed.uniform("a", 1, g, 2), keyed.uniform("a", 0, g, 2, sub=1)]
    others += [np.roll(base, 1, axis=0), base[:, ::-1]]
    for other in others:
        correlation = np.corrcoef(base[:, 0], other[:, 0])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(g))
    counts = np.histogram(base[:, 0], bins=50, range=(0, 1))[0]
    chi2 = ((counts - len(g) / 50) ** 2 / (len(g) / 50)).sum()
    assert chi2 < 49 + 4 * np.sqrt(2 * 49)


def test_generator_is_keyed() -> None:
    first = keyed.generator("order", 0, 3).permutation(10)
    np.testing.assert_array_equal(first, keyed.generator("order", 0, 3).permutation(10))
    assert (first != keyed.generator("order", 0, 4).permutation(10)).any()
