"""Wilson's interval against scipy, and tables of different tasks are not mixed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from scipy.stats import binomtest, norm

from jepa.errors import ConfigError
from jepa.plan import protocol


@pytest.mark.parametrize(("won", "of"), [(0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (3, 7), (1, 1)])
def test_wilson_is_scipys(won: int, of: int) -> None:
    found = binomtest(won, of).proportion_ci(0.95, method="wilson")
    assert protocol.wilson(won, of) == pytest.approx((found.low, found.high), abs=1e-12)


def test_the_quantile_and_the_ends() -> None:
    assert pytest.approx(norm.ppf(0.975), abs=1e-15) == protocol.Z95
    assert protocol.wilson(0, 50)[0] == 0.0 and protocol.wilson(50, 50)[1] == 1.0
    for won, of in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ConfigError, match="episode"):
            protocol.wilson(won, of)


TASK: dict[str, Any] = {"environment": {"env": "A-v1", "start": [{"call": "f"}]}, "goals": {"offset": 25}, "budget": 50}


def result(task: dict[str, Any]) -> dict[str, Any]:
    return {"suite": "s", "run": "r", "protocol": "1", "task": task, "fingerprint": protocol.fingerprint(task)}


def test_equal_tasks_have_equal_fingerprints() -> None:
    again = dict(reversed(copy.deepcopy(TASK).items()))
    assert protocol.fingerprint(again) == protocol.fingerprint(TASK)
    protocol.check_comparable([result(TASK), result(again)])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("budget", 100, "budget: 50 and 100"),
        ("goals", {"offset": 50}, "goals.offset: 25 and 50"),
        ("environment", {"env": "B-v1", "start": [{"call": "f"}]}, 'environment.env: "A-v1" and "B-v1"'),
    ],
)
def test_other_tasks_are_refused(key: str, value: Any, said: str) -> None:
    other = result({**TASK, key: value})
    with pytest.raises(ConfigError, match=f"not the same task.*{said}"):
        protocol.check_comparable([result(TASK), other])
    assert other["fingerprint"] != result(TASK)["fingerprint"]
    with pytest.raises(ConfigError, match='protocol: "1" and "0"'):
        protocol.check_comparable([result(TASK), {**result(TASK), "protocol": "0"}])
