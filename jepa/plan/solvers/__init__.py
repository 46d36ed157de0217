"""The solvers by name, one file each."""

from __future__ import annotations

from typing import Any

from jepa import config
from jepa.errors import ConfigError
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start
from jepa.plan.solvers.categorical import Categorical
from jepa.plan.solvers.cem import CEM
from jepa.plan.solvers.gradient import Gradient
from jepa.plan.solvers.icem import ICEM
from jepa.plan.solvers.mppi import MPPI
from jepa.plan.solvers.sampling import PredictiveSampling

SOLVERS: dict[str, type[Solver]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "sampling": PredictiveSampling,
    "gradient": Gradient,
    "categorical": Categorical,
}


def create(values: dict[str, Any]) -> Solver:
    """A solver from the ``solver`` section of a suite: its name and settings.

    Raises:
        ConfigError: an unknown name or setting, or a value that is not allowed.
    """
    options = dict(values)
    name = options.pop("name", "cem")
    if name not in SOLVERS:
        raise ConfigError(
            config.unknown_key(f"solver.name={name}", str(name), list(SOLVERS)).replace("key", "solver", 1)
        )
    cls = SOLVERS[name]
    return cls(config.build(cls.Config, options, "solver"))


__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "SOLVERS",
    "Categorical",
    "Cost",
    "Gradient",
    "Noise",
    "Plan",
    "PredictiveSampling",
    "Solver",
    "Start",
    "create",
]
