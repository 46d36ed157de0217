"""Planning with a world model: search for the actions whose imagined outcome is best, take the first, look again.

    space = ActionSpace.of(env.action_space, stride, model)      what an action may be, in whose units
    solver = solvers.create({"name": "cem", "samples": 300})     how to search
    objective = Objective(ObjectiveConfig(distance="l2"))        what is good
    agent = Agent(model, solver, objective, space, look, MPC(horizon=5, execute=5))

Three layers, each usable without the ones after it:

- `solver.plan(cost, space, horizon, noise, start=None) -> Plan`: `cost` maps candidates (B, S, H, A) in the units of
  the environment to (B, S), smaller is better; `noise = Noise(seed, keys)` has a key of whole numbers for each of the
  B rows, such as (episode, plan number), and a row's plan depends on its own key alone; `start` is the plan before,
  moved on: `plan.shift(steps, space)`. `Plan` has actions (B, H, A), cost (B,), trace (I, B): the best cost of
  every iteration.
- `objective.cost(model, state, target, chunk) -> RolloutCost` is such a cost: `state = model.observe(history)` and
  `target = objective.target(model, Goal(frames, proprio))`, both encoded once.
- `agent.reset(B)`, then either `agent.act(history, goal) -> (B, k, a)`, k = execute * stride actions of the
  environment (whole numbers (B, k) for discrete ones) for a `History` that the caller keeps; or at every step of the
  environments `agent.act(frames, goal) -> (B, a)` with uint8 frames (B, H, W, 3), the agent keeping history at the
  model's frame skip and planning when it has run out; or both without B, for a single environment. When an
  environment begins a new episode: `agent.reset(rows=[3])`. `agent.stats` counts time and model calls.

Shapes: B environments, S candidates, H steps of the model, A numbers of one action of the model (`stride` actions of
the environment side by side, a each).
"""

from jepa.plan.agent import MPC, Agent, Look, Stats
from jepa.plan.objective import Goal, Objective, ObjectiveConfig, RolloutCost, Target
from jepa.plan.solvers import create
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start
from jepa.plan.space import ActionSpace

__all__ = [
    "MPC",
    "ActionSpace",
    "Agent",
    "Cost",
    "Goal",
    "Look",
    "Noise",
    "Objective",
    "ObjectiveConfig",
    "Plan",
    "RolloutCost",
    "Solver",
    "Start",
    "Stats",
    "Target",
    "create",
]
