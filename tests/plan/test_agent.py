"""The agent drives real environments: points that move as they are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from jepa.errors import ConfigError
from jepa.methods.world import History
from jepa.plan import MPC, ActionSpace, Agent, Goal, Look, Objective, ObjectiveConfig, create
from tests.plan.worlds import LOOK, Point, box, compass, frames, picture, point, seen

NEAR = Objective(ObjectiveConfig(steps="all"))  # with the last step alone, a point at its goal may stroll
CEM = {"name": "cem", "samples": 64, "elites": 8, "iterations": 8}
Places = np.ndarray[Any, Any]


def agent(model: Point | None = None, mpc: MPC | None = None, space: ActionSpace | None = None, **solver: Any) -> Agent:
    model = model or point()
    space = space or box(0.1, model.config.stride)
    return Agent(model, create(solver or CEM), NEAR, space, LOOK, mpc or MPC(horizon=4, execute=2))


def move(places: Places, actions: Places) -> Places:
    moved: Places = np.clip(places + actions, 0, 1)
    return moved


STARTS = np.array([[0.1, 0.1], [0.9, 0.2], [0.5, 0.5], [0.2, 0.9]])
GOALS = np.array([[0.8, 0.7], [0.1, 0.3], [0.5, 0.1], [0.9, 0.9]])


def test_reaches_goals() -> None:
    who, places = agent(), STARTS.copy()
    who.reset(4)
    for _ in range(12):
        actions = who.act(picture(places), picture(GOALS))
        assert actions.shape == (4, 2) and actions.dtype == np.float32 and np.abs(actions).max() <= np.float32(0.1)
        places = move(places, actions)
    assert np.abs(places - GOALS).max() < 0.03
    assert who.stats.steps == 4 * 12 and len(who.stats.seconds) == 6
    told = who.stats.summary()
    assert told["calls_per_step"] == 6 * 9 / 48 and told["imagined_per_step"] == (8 * 64 + 1) * 4 / 2
    assert 0 < told["seconds_per_step"] < told["seconds_per_plan"]


def test_one_environment_without_a_batch() -> None:
    who, place = agent(), STARTS[:1]
    for _ in range(12):
        action = who.act(picture(place)[0], picture(GOALS[:1])[0])
        assert action.shape == (2,)
        place = move(place, action[None])
    assert np.abs(place - GOALS[:1]).max() < 0.03


def test_a_batch_is_as_many_agents() -> None:
    together, places = agent(), STARTS.copy()
    together.reset(4, keys=[3, 4, 5, 6])
    alone = [agent() for _ in range(4)]
    for one, key in zip(alone, [3, 4, 5, 6], strict=True):
        one.reset(1, keys=[key])
    for step in range(8):
        actions = together.act(picture(places), picture(GOALS))
        singles = [one.act(picture(places[i : i + 1])[0], picture(GOALS[i : i + 1])[0]) for i, one in enumerate(alone)]
        np.testing.assert_allclose(actions, np.stack(singles), atol=1e-6)
        places = move(places, actions)
        if step == 4:  # an episode ends, in the middle of a plan of the others
            together.reset(rows=[2], keys=[9])
            alone[2].reset(1, keys=[9])
            places[2] = [0.3, 0.3]


def test_history_at_the_frame_skip() -> None:
    model = point(stride=3)
    who, places = agent(model, MPC(horizon=3, execute=1, history=2)), STARTS.copy()
    who.reset(4)
    passed, taken = [], []
    for step in range(10):
        actions = who.act(picture(places), picture(GOALS))
        if step % 3 == 0:
            passed.append(frames(places))
        taken.append(actions)
        places = move(places, actions)
    histories = [h for h in model.seen if h.frames.shape[1] > 1 or torch.equal(h.frames[:, 0], passed[0])]
    assert [h.frames.shape[1] for h in histories] == [1, 2, 2, 2]
    last = histories[-1]
    assert torch.equal(last.frames, torch.stack(passed[-2:], dim=1))
    expected = torch.tensor(np.stack(taken[6:9], axis=1)).reshape(4, 1, 6)
    assert torch.equal(last.actions, expected)


def test_histories_that_the_caller_keeps() -> None:
    model = point(stride=2)
    who = agent(model, MPC(horizon=3, execute=2, history=2))
    who.reset(4)
    x = frames(STARTS)[:, None].expand(-1, 5, -1, -1, -1)
    numbered = torch.arange(4.0)[None, :, None].expand(4, 4, 4)
    actions = who.act(History(x, numbered), Goal(frames(GOALS)))
    assert actions.shape == (4, 4, 2) and actions.abs().max() <= 0.1
    shown = model.seen[-1]
    assert shown.frames.shape[1] == 2 and torch.equal(shown.actions, numbered[:, 3:])
    some = who.act(History(x[1:3], numbered[1:3]), Goal(frames(GOALS[1:3])), rows=[1, 3])
    assert some.shape == (2, 4, 2)
    with pytest.raises(ConfigError, match="4 environments for rows"):
        who.act(History(x, numbered), Goal(frames(GOALS)), rows=[0])


def test_equal_seeds_plan_equally() -> None:
    def first(seed: int) -> Places:
        who = Agent(point(), create(CEM), Objective(), box(), LOOK, MPC(horizon=4, execute=2), seed=seed)
        who.reset(2)
        return np.asarray(who.act(picture(STARTS[:2]), picture(GOALS[:2])))

    assert np.array_equal(first(0), first(0)) and not np.array_equal(first(0), first(1))


def test_goals_are_encoded_once() -> None:
    model = point()
    who, places = agent(model, MPC(horizon=2, execute=1)), STARTS.copy()
    who.reset(4)
    for step in range(4):
        model.seen.clear()
        goals = GOALS.copy()
        goals[1] = [0.5, 0.5] if step >= 2 else goals[1]
        who.act(picture(places), picture(goals))
        assert [len(h.frames) for h in model.seen] == {0: [4, 4], 1: [4], 2: [1, 4], 3: [4]}[step]
    who.act(picture(places))  # the goals hold on


def test_warm_starts_save_iterations() -> None:
    """With one small step of search per plan, only a plan that is carried on gets anywhere."""
    ends = {}
    for warm in (True, False):
        mpc = MPC(horizon=8, execute=1, warm=warm)
        who, places = (
            agent(point(), mpc, name="sampling", samples=16, std=0.3),
            STARTS.copy(),
        )
        who.reset(4)
        for _ in range(10):
            places = move(places, who.act(picture(places), picture(GOALS)))
        ends[warm] = np.abs(places - GOALS).mean()
    assert ends[True] < 0.7 * ends[False]


def test_elites_are_carried_to_rows_that_go_on() -> None:
    who, places = agent(mpc=MPC(horizon=4, execute=1), name="icem", samples=64), STARTS.copy()
    who.reset(4)
    for step in range(12):
        places = move(places, who.act(picture(places), picture(GOALS)))
        if step == 3:
            who.reset(rows=[0])
    assert np.abs(places - GOALS).max() < 0.05


def test_discrete_actions() -> None:
    model = compass(stride=2)
    space = ActionSpace.of(gym.spaces.Discrete(5), 2, model)
    solver = create({"name": "categorical", "samples": 64, "elites": 8})
    who = Agent(model, solver, NEAR, space, LOOK, MPC(horizon=4, execute=2))
    who.reset(4)
    ways = np.array([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
    places = STARTS.copy()
    for _ in range(16):
        chosen = who.act(picture(places), picture(GOALS))
        assert chosen.shape == (4,) and np.issubdtype(chosen.dtype, np.integer)
        places = move(places, ways[chosen])
    assert np.abs(places - GOALS).max() < 0.08


def test_gradients_through_the_model() -> None:
    solver = create({"name": "gradient", "restarts": 2, "iterations": 30})
    model = point()
    who, places = Agent(model, solver, NEAR, box(), LOOK, MPC(horizon=4, execute=2)), STARTS.copy()
    who.reset(4)
    for _ in range(12):
        places = move(places, who.act(picture(places), picture(GOALS)))
    assert np.abs(places - GOALS).max() < 0.03 and model.gain.grad is None


def test_chunks_change_nothing_but_memory() -> None:
    plans, most = [], []
    for chunk in (0, 150, 24):
        model = point()
        who = agent(model, MPC(horizon=4, execute=2, chunk=chunk))
        who.reset(4)
        plans.append(who.act(picture(STARTS), picture(GOALS)))
        most.append(model.most)
    assert np.array_equal(plans[0], plans[1]) and np.array_equal(plans[0], plans[2])
    assert most == [256, 128, 24]


def test_proprioception() -> None:
    model = point(proprio=2)
    model.proprio_scale.fit(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.25]))
    objective = Objective(ObjectiveConfig(goal=0.0, proprio=1.0, steps="all"))
    who, places = Agent(model, create(CEM), objective, box(), LOOK, MPC(horizon=4, execute=2)), STARTS.copy()
    who.reset(4)
    # `Point` predicts its place as proprioception in the model's units, so the goal is told in the data's
    goals = model.proprio_scale.back(torch.tensor(GOALS).float()).numpy()
    for _ in range(12):
        places = move(places, who.act(picture(places), picture(0 * GOALS), proprio=places, goal_proprio=goals))
    assert np.abs(places - GOALS).max() < 0.03
    assert model.seen[-1].proprio is not None and model.seen[-1].proprio.shape == (4, 3, 2)
    with pytest.raises(ConfigError, match="trained with 2 numbers of proprioception"):
        who.act(picture(places), picture(GOALS))
    with pytest.raises(ConfigError, match=r"proprio of shape \(4, 3\)"):
        who.act(picture(places), picture(GOALS), proprio=np.zeros((4, 3)))
    with pytest.raises(ConfigError, match="trained without proprioception"):
        Agent(point(), create(CEM), objective, box(), LOOK)


def test_what_is_refused() -> None:
    model = point()
    model.reach = 3
    with pytest.raises(ConfigError, match="horizon of 4 steps; the model was trained to roll out 3"):
        agent(model)
    agent(model, MPC(horizon=4, beyond_reach=True, execute=1))
    with pytest.raises(ConfigError, match=r"(?s)2 numbers \(1 steps of 2, continuous\).*trained on 6"):
        Agent(point(stride=3), create(CEM), Objective(), box(), LOOK)
    with pytest.raises(ConfigError, match="execute=6 of horizon=5"):
        MPC(horizon=5, execute=6)
    who = agent()
    with pytest.raises(ConfigError, match=r"call reset\(4\) first"):
        who.act(picture(STARTS), picture(GOALS))
    who.reset(4)
    with pytest.raises(ConfigError, match="give a goal image"):
        who.act(picture(STARTS))
    who.reset(4)
    with pytest.raises(ConfigError, match="goal: a frame of 4x6, the model was trained on 4x4"):
        who.act(picture(STARTS), np.zeros((4, 4, 6, 3), np.uint8))
    who.reset(4)
    with pytest.raises(ConfigError, match="observation: torch.float64"):
        who.act(np.zeros((4, 4, 4, 3)), picture(GOALS))
    with pytest.raises(ConfigError, match="3 keys for 4 episodes"):
        who.reset(4, keys=[1, 2, 3])
    with pytest.raises(ConfigError, match="without a Look"):
        blind = Agent(point(), create(CEM), Objective(), box())
        blind.reset(4)
        blind.act(picture(STARTS), picture(GOALS))


def test_frames_of_another_size_can_be_resized() -> None:
    large = np.kron(picture(STARTS), np.ones((1, 3, 3, 1), np.uint8))
    same = replace(LOOK, resize=True)(large, torch.device("cpu"))
    torch.testing.assert_close(same, frames(STARTS), atol=1 / 255, rtol=0)
    assert isinstance(LOOK, Look)


def test_reward_needs_no_goal() -> None:
    objective = Objective(ObjectiveConfig(goal=0.0, reward=1.0))
    who = Agent(point(), create(CEM), objective, box(), LOOK, MPC(horizon=3, execute=1))
    who.reset(2)
    assert (who.act(picture(STARTS[:2]))[:, 0] > 0.08).all()


def test_seen_helper_is_one_frame() -> None:
    assert seen(STARTS).frames.shape == (4, 1, 3, 4, 4)
