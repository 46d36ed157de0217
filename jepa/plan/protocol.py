"""The rules by which planning is measured, so that two tables can be told to be comparable, or not.

Protocol 1: an episode begins in a start state and has a goal, both fixed before anybody acts: from held-out episodes
at a drawn frame and so many environment steps later, or from the environment's own reset, keyed by the suite's seed.
Every policy gets the same ones. It may take `budget` environment steps; the environment says when it has succeeded,
after any step, and the episode ends there. One that the environment ended otherwise, or in which it failed, has not
succeeded. The success rate comes with Wilson's 95 % interval over episodes. Seconds are those of one call of the
planner for all episodes of a batch, encoding included.

`fingerprint` is a hash of whatever the difficulty of the task depends on and nothing that a policy is free in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jepa.errors import ConfigError

PROTOCOL = "1"
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, JASA 22, 1927): (low, high) within 0..1.

    Unlike the normal interval it holds at 0 % and 100 %, where plans often are.

    Raises:
        ConfigError: no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ConfigError(f"{successes} successes of {episodes} episodes: need at least one episode, and not more")
    share, n = successes / episodes, episodes
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # exact at the ends, where rounding would leave 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == episodes else centre + half)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what makes the task: equal for equal protocol, environment, episodes, budget, rule."""
    text = json.dumps({"protocol": PROTOCOL, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """What two results' tasks differ in, in words."""
    found: list[str] = []
    for key in sorted({*one, *other}):
        a, b, name = one.get(key), other.get(key), f"{where}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {_short(a)} and {_short(b)}")
    return found


def check_comparable(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to put results of different tasks into one table.

    Args:
        results: as `jepa plan` writes them, with "name", "protocol", "fingerprint" and "task".

    Raises:
        ConfigError: their protocols or fingerprints differ; the message says in what.
    """
    first = results[0]
    for other in results[1:]:
        if (other["protocol"], other["fingerprint"]) != (first["protocol"], first["fingerprint"]):
            told = differences(
                {"protocol": first["protocol"], **first["task"]}, {"protocol": other["protocol"], **other["task"]}
            )
            raise ConfigError(
                f"{first['suite']} of {first['run']} and {other['suite']} of {other['run']} are not the same task, and "
                f"their figures do not belong in one table. They differ in {'; '.join(told) or 'their episodes'}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
