"""stable-worldmodel's World, solver and policy run a model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa import config
from jepa.config import ClipConfig
from jepa.errors import ConfigError
from jepa.plan.objective import ObjectiveConfig
from jepa.plan.swm import Costable
from tests.plan.rooms import Rooms, run_folder

swm = pytest.importorskip("stable_worldmodel")
SIZE = 64


class Recorded:
    """Episodes in memory, with what World.evaluate asks of a data set."""

    column_names = ("pixels", "state")

    def __init__(self, count: int, steps: int) -> None:
        import gymnasium
        from PIL import Image

        env = gymnasium.make("swm/TwoRoom-v1", disable_env_checker=True)
        expert = swm.envs.two_room.ExpertPolicy() if hasattr(swm.envs, "two_room") else None
        assert expert is not None
        expert.set_env(env)
        self.episodes: list[dict[str, torch.Tensor]] = []
        for seed in range(count):
            _, info = env.reset(seed=seed)
            frames, states = [], []
            for _ in range(steps):
                picture = Image.fromarray(env.render()).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                frames.append(np.asarray(picture))
                states.append(np.array(info["state"]))
                *_, info = env.step(expert.get_action(info))
            pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
            self.episodes.append({"pixels": pixels, "state": torch.from_numpy(np.stack(states))})

    def load_chunk(self, episodes: Any, starts: Any, ends: Any) -> list[dict[str, torch.Tensor]]:
        return [
            {name: rows[int(a) : int(b)].clone() for name, rows in self.episodes[int(i)].items()}
            for i, a, b in zip(episodes, starts, ends, strict=True)
        ]


CALLS = [
    {"method": "_set_state", "args": {"state": {"value": "state"}}},
    {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state"}}},
]


def world(model: Costable, envs: int) -> Any:
    made = swm.World("swm/TwoRoom-v1", num_envs=envs, image_shape=(SIZE, SIZE), max_episode_steps=100)
    search = swm.solver.CEMSolver(model, batch_size=envs, num_samples=64, n_steps=8, topk=8)
    config = swm.PlanConfig(horizon=2, receding_horizon=2, action_block=model.action_block)
    made.set_policy(swm.policy.WorldModelPolicy(search, config, process=model.process, transform=model.transform))
    return made


def test_world_evaluates_our_model(tmp_path: Path) -> None:
    data = Recorded(4, 13)
    given: dict[str, Any] = {
        "dataset": data, "episodes_idx": [0, 1, 2, 3], "start_steps": [0, 0, 0, 0], "goal_offset": 12,
        "eval_budget": 20, "callables": CALLS,
    }  # fmt: skip
    model = Costable.of(run_folder(tmp_path / "run", "method.space.action=10"))
    assert model.action_block == 5
    good = world(model, 4).evaluate(**given)["success_rate"]
    assert model.encoded <= 2, "frames are encoded once for all iterations of a solver"
    blind = Costable.of(run_folder(tmp_path / "blind", "method.blind=true"))
    bad = world(blind, 4).evaluate(**given)["success_rate"]
    assert good >= 75 > bad


def info(model: Costable, **more: Any) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (2, 1, 1, SIZE, SIZE, 3), generator=gen, dtype=torch.uint8)
    return {
        "pixels": frames.expand(-1, 3, -1, -1, -1, -1),
        "goal": frames.flip(-2).expand(-1, 3, -1, -1, -1, -1),
        **more,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Costable:
    return Costable.of(
        run_folder(tmp_path_factory.mktemp("swm") / "run", "method.reach=6"), ObjectiveConfig(distance="l1")
    )


def test_candidates_are_in_the_units_of_the_model(model: Costable) -> None:
    """A candidate z means mean + std * z, for the model and for the environment alike."""
    mean, std = torch.tensor([0.3, -0.2]).repeat(5), torch.tensor([0.5, 0.25]).repeat(5)
    z = torch.randn(2, 3, 4, 10, generator=torch.Generator().manual_seed(1))
    plain = model.get_cost(info(model), z * std + mean)
    model.model.action_scale.fit(mean, std)
    try:
        again = Costable(model.model, model.eyes.data, ObjectiveConfig(distance="l1"))
        torch.testing.assert_close(again.get_cost(info(model), z), plain)
        step = z[0, 0, 0, :2].numpy()
        np.testing.assert_allclose(
            again.process["action"].inverse_transform(step), step * [0.5, 0.25] + [0.3, -0.2], rtol=1e-5
        )
        np.testing.assert_allclose(
            again.process["action"].transform(again.process["action"].inverse_transform(step)), step, atol=1e-6
        )
    finally:
        model.model.action_scale.fit(torch.zeros(10), torch.ones(10))


def test_cost_is_the_objective_of_a_roll_out(model: Costable) -> None:
    from jepa.methods.world import History

    given, z = info(model), torch.randn(2, 3, 4, 10, generator=torch.Generator().manual_seed(1))
    frames, goal = (
        torch.stack([model.transform[k](f.permute(2, 0, 1)) for f in given[k][:, 0, 0]]) for k in ("pixels", "goal")
    )
    state = model.model.observe(History(frames[:, None], torch.zeros(2, 0, 10)))
    there = model.model.observe(History(goal[:, None], torch.zeros(2, 0, 10))).latents[:, -1]
    wanted = (model.model.imagine(state, z).latents[:, :, -1] - there[:, None]).abs().mean((-2, -1))
    torch.testing.assert_close(model.get_cost(given, z), wanted)
    normalised = {
        "pixels": frames[:, None, None].expand(-1, 3, 1, -1, -1, -1),
        "goal": goal[:, None, None].expand(-1, 3, 1, -1, -1, -1),
    }
    torch.testing.assert_close(model.get_cost(normalised, z), wanted)


def test_one_encoding_for_equal_infos_and_gradients(model: Costable) -> None:
    z = torch.zeros(2, 3, 4, 10)
    with torch.inference_mode():
        model.get_cost(info(model), z)
    before, seen = model.encoded, Rooms.calls
    leaf = z.clone().requires_grad_()
    model.get_cost({k: v.clone() for k, v in info(model).items()}, leaf).sum().backward()
    assert (model.encoded, Rooms.calls) == (before, seen) and leaf.grad is not None and bool(leaf.grad.abs().sum() > 0)
    other = info(model)
    other["goal"] = other["goal"].clone()
    other["goal"][1] = 0
    assert not torch.equal(model.get_cost(other, z), model.get_cost(info(model), z))
    assert model.encoded == before + 2


def test_what_does_not_fit_is_refused(model: Costable) -> None:
    z = torch.zeros(2, 3, 4, 10)
    with pytest.raises(ConfigError, match="no 'goal'.*pixels"):
        model.get_cost({"pixels": info(model)["pixels"]}, z)
    with pytest.raises(ConfigError, match="action_block=5"):
        model.get_cost(info(model), z[..., :2])
    with pytest.raises(ConfigError, match="horizon of 7 steps.*roll out 6"):
        model.get_cost(info(model), torch.zeros(2, 3, 7, 10))
    with pytest.raises(ConfigError, match=r"\(3, 32, 32\), the model takes \(3, 64, 64\).*transform=model.transform"):
        model.get_cost({k: torch.zeros(2, 3, 1, 3, 32, 32) for k in ("pixels", "goal")}, z)
    two = {k: v.repeat(1, 1, 2, 1, 1, 1) for k, v in info(model).items()}
    with pytest.raises(ConfigError, match=r"2 frames, and info\['action'\] is missing: give \(B, S, 2, 10\)"):
        model.get_cost(two, z)
    with pytest.raises(ConfigError, match=r"has shape \(2, 3, 2, 2\)"):
        model.get_cost(two | {"action": torch.zeros(2, 3, 2, 2)}, z)


def test_several_frames_reach_the_model_with_the_actions_between_them() -> None:
    """A model with a memory: costs are those of the history that it looks at, in the units of the data set."""
    from jepa.config import DataConfig
    from jepa.methods.world import History
    from tests.methods.squares import LEWM, make

    tiny = make(LEWM | {"space": {"action": 4}}).eval()
    tiny.action_scale.fit(torch.tensor([0.3, -0.2, 0.3, -0.2]), torch.tensor([0.5, 2.0, 0.5, 2.0]))
    data = DataConfig(image_size=(16, 16), clip=config.build(ClipConfig, {"frames": 4, "stride": 2}))
    client = Costable(tiny, data)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    pixels, goal, done, z = draw(2, 3, 3, 16, 16), draw(2, 1, 3, 16, 16), draw(2, 3, 4), draw(2, 5, 4, 4)
    given = {"pixels": pixels, "goal": goal, "action": done}
    given = {name: value.unsqueeze(1).expand(-1, 5, *value.shape[1:]) for name, value in given.items()}
    scale = tiny.action_scale
    with torch.no_grad():
        state = tiny.observe(History(pixels, scale.back(done[:, :2])))
        future = tiny.imagine(state, scale.back(z)).latents[:, :, -1]
        there = tiny.observe(History(goal, torch.zeros(2, 0, 4))).latents
    wanted = (future - there[:, -1][:, None]).square().mean((-2, -1))
    with torch.no_grad():
        torch.testing.assert_close(client.get_cost(given, z), wanted)
        assert not torch.allclose(client.get_cost(given | {"action": given["action"] + 1}, z), wanted)
        assert client.encoded == 2
        newest = client.get_cost({"pixels": given["pixels"][:, :, -1:], "goal": given["goal"]}, z)
    assert not torch.allclose(newest, wanted)


def test_its_solver_for_choices_plans_with_a_discrete_model(tmp_path: Path) -> None:
    """Choice 1 moves right, 2 left, 0 not at all; the goal lies to the right."""
    import gymnasium

    space = ["method.space.action=6", "method.space.discrete=3", "method.walls=false"]
    client = Costable.of(run_folder(tmp_path / "run", *space, stride=2))
    assert client.action_block == 2 and "action" not in client.process
    frames = np.zeros((2, 1, SIZE, SIZE, 3), dtype=np.uint8)
    frames[0, 0, 30:34, 20:24, 0] = frames[1, 0, 30:34, 40:44, 0] = 255
    pixels = torch.from_numpy(frames)
    given = {"pixels": pixels, "goal": pixels.flip(0)}
    solver = swm.solver.CategoricalCEMSolver(client, batch_size=2, num_samples=200, n_steps=8, topk=20)
    plan = swm.PlanConfig(horizon=3, receding_horizon=3, action_block=client.action_block)
    solver.configure(action_space=gymnasium.spaces.Discrete(3), n_envs=2, config=plan)
    found = solver.solve(given)["actions"]
    assert found.shape == (2, 3, 2) and bool((found[0] == 1).all()) and bool((found[1] == 2).all()), found
