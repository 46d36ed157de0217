"""`jepa plan` whole: against an environment of our own, quick enough to be run whole, and once in TwoRoom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from jepa import checkpoint
from jepa.data import Manifest, blank
from jepa.data.build import build
from jepa.errors import ConfigError, DataError
from jepa.methods.world import History, State
from jepa.plan import run as module
from jepa.plan import terminal
from jepa.plan.result import read
from jepa.plan.run import plan
from jepa.plan.starts import mean_difference, problems
from jepa.plan.suite import load_suite
from tests import tiny
from tests.plan.rooms import Rooms, run_folder

LINE = Path(__file__).with_name("line.yaml")
MODEL = ("method.speed=14", "method.walls=false")  # what a step of tests/Line-v0 is in pixels of 224


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("line") / "run", *MODEL, stride=2)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out episodes of tests/Line-v0: 4 of 20 steps for testing."""
    out = tmp_path_factory.mktemp("data") / "line"
    recipe = out.with_suffix(".yaml")
    recipe.write_text(
        "name: line\nlicence: none\n"
        "source: {kind: rollouts, env: tests/Line-v0, modules: [tests.plan.stages], steps: 20, until: steps,\n"
        "  arrays: {state: info.state}, episodes: {train: 2, val: 1, test: 4}}\n"
        "video: {crf: 8, full_colour: true}\n"
    )
    build(recipe, out, progress=False)
    return out


def go(where: Path, *overrides: str, **more: Any) -> dict[str, Any]:
    return plan(where, LINE, list(overrides), device="cpu", progress=False, **more)


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in result["rows"]}


def test_plans_reach_goals_and_the_file_says_how(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans" / "line.json"
    result = go(folder, "episodes=6", "seeds=[0,3]", out=out)
    found = rows(result)
    assert list(found) == ["planner", "random", "do nothing", "scripted expert"]
    assert found["planner"]["value"] == found["scripted expert"]["value"] == 1.0 and found["do nothing"]["value"] == 0
    assert found["planner"]["low"] > found["random"]["high"], "clearly more often than by chance"
    assert found["planner"]["episodes"] == 12 and set(found["planner"]["seeds"]) == {"0", "3"}
    took = found["planner"]["planning"]
    # in 12 steps of 2: at most 3 plans of 2 actions; 3 searches of 32 and the mean, 3 actions deep
    assert (
        took["imagined_per_step"] == (3 * 32 + 1) * 3 / 4
        and 0 < took["seconds_per_plan"] <= took["seconds_per_plan_p95"]
    )
    cost = result["cost"]  # of an episode
    assert cost["model_steps"] > 0 and cost["joules"] > 0 and cost["device_seconds"] > 0 and cost["energy_source"]
    stored = read(out)
    assert stored == {k: v for k, v in result.items() if k != "file"} and result["file"] == str(out)
    first = stored["episodes"][0]
    assert first["goal"] == {"state": [40.0, 32.0]} and first["policies"]["planner"]["ended"] == "goal"
    assert first["policies"]["planner"]["distance"] < 3 and first["policies"]["do nothing"]["steps"] == 12
    assert [e["seed"] for e in stored["episodes"]] == [0] * 6 + [3] * 6
    assert not list(out.parent.glob(".*")), "neither journal nor half a file is left"
    shown = [Image.open(out.parent / name) for name in result["pictures"]]
    assert [p.format for p in shown] == ["GIF", "PNG"]
    assert shown[0].n_frames == 1 + first["policies"]["planner"]["steps"]  # type: ignore[attr-defined]
    console = Console(width=200, record=True, file=(tmp_path / "table").open("w"))
    console.print(terminal.table(result, [stored]))
    text = console.export_text()
    assert "100 % [76, 100]" in text and f"planner of {folder}" in text and result["fingerprint"] in text
    narrow = Console(width=80, record=True, file=(tmp_path / "narrow").open("w"))
    narrow.print(terminal.table(result))
    lines = narrow.export_text().splitlines()
    assert all(any(f"│ {row['policy']} " in line for line in lines) for row in result["rows"]) and "┩" in lines[4]
    assert "plans look 3 steps ahead, in training windows at most 2 followed a frame" in " ".join(text.split())


def test_a_horizon_within_the_training_windows_needs_no_note(folder: Path, tmp_path: Path) -> None:
    few = ("episodes=1", "planner.horizon=2", "planner.execute=2", "pictures.episodes=0", "pictures.landscape=false")
    assert go(folder, *few, out=tmp_path / "line.json")["notes"] == []


def test_blank_frames_reach_the_planner_and_nobody_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, seen = Rooms.observe, list[torch.Tensor]()

    def watched(self: Rooms, history: History) -> State:
        if not history.frames.is_meta:  # there operations are counted
            seen.append(history.frames * self.std + self.mean)
        return observe(self, history)

    monkeypatch.setattr(Rooms, "observe", watched)
    settings = ("episodes=2", "planner.history=all", "planner.execute=1", "pictures.landscape=false")

    def made(name: str, *overrides: str) -> tuple[dict[str, Any], list[torch.Tensor]]:
        seen.clear()
        result = go(folder, *settings, *overrides, out=tmp_path / f"{name}.json")
        return result, [frames[i] for frames in seen for i in range(len(frames))]

    def is_black(frames: torch.Tensor) -> list[bool]:
        return [bool(frame.abs().max() < 1e-6) for frame in frames]

    part, shown = made("part", "environment.blank=0.7", "batch=1")
    longest = [max((h for h in shown if len(h) > 1), key=len)]
    expected = [
        ~blank.shown("blank.plan", 0, e["number"], 13, 0.7)[::2] for e in part["episodes"]
    ]  # a step of the model is two of the environment
    patterns = [tuple(x[: len(longest[0])].tolist()) for x in expected]
    assert tuple(is_black(longest[0])) in patterns and not is_black(longest[0])[0]
    assert sum(map(sum, map(is_black, shown))) > 0
    together, _ = made("together", "environment.blank=0.7", "batch=2")
    assert [e["policies"] for e in together["episodes"]] == [e["policies"] for e in part["episodes"]]
    whole, shown = made("whole")
    assert not any(map(any, map(is_black, shown)))
    assert (
        rows(whole)["scripted expert"] == rows(part)["scripted expert"]
        and rows(whole)["random"] == rows(part)["random"]
    )
    assert rows(whole)["planner"] != rows(part)["planner"]
    assert part["task"]["environment"]["blank"] == 0.7 and part["fingerprint"] != whole["fingerprint"]
    assert "blank" not in whole["task"]["environment"], "tables from before there was such a key stay comparable"
    assert (tmp_path / "part" / "episode-0.gif").is_file()
    with pytest.raises(ConfigError, match=r"blank=1: the share"):
        go(folder, "environment.blank=1")


def test_what_is_planned_depends_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    def made(name: str, *overrides: str) -> list[Any]:
        return [e["policies"] for e in go(folder, *overrides, out=tmp_path / f"{name}.json")["episodes"]]

    plain = made("a")
    assert made("b", "batch=1") == plain, "whatever is planned together"
    assert made("c", "seeds=[1]") != plain
    assert made("d", "seeds=[1,0]")[4:] == plain, "a seed's episodes do not depend on other seeds"


def test_an_interrupted_run_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(folder, "baselines.random=false", out=tmp_path / "whole.json")
    add, calls = module.Journal.add, []

    def interrupted(self: Any, lines: Any) -> None:
        calls.append(lines)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, lines)

    monkeypatch.setattr(module.Journal, "add", interrupted)
    out = tmp_path / "again.json"
    with pytest.raises(KeyboardInterrupt):
        go(folder, "baselines.random=false", out=out)
    assert not out.exists()
    journal = out.with_name(".again.journal.jsonl")
    journal.write_text(journal.read_text() + '{"batch": [{"pol')  # killed while it wrote
    again = go(folder, "baselines.random=false", out=out)
    assert [e["policies"] for e in again["episodes"]] == [e["policies"] for e in whole["episodes"]]
    assert len(calls) == 3 + (2 + 8 - 2), "two of the ten parts were done before"
    assert again["pictures"] == ["again/episode-0.gif", "again/landscape.png"]


def test_an_environment_that_fails_on_the_way(folder: Path, tmp_path: Path) -> None:
    result = go(folder, "environment.kwargs={fragile: true}", "episodes=8", out=tmp_path / "a.json")
    found = rows(result)["planner"]
    failed = [e["policies"]["planner"] for e in result["episodes"] if "error" in e["policies"]["planner"]]
    assert 0 < found["failed"] == len(failed) < 8 and found["successes"] == 8 - len(failed)
    assert all("RuntimeError: the motor is on fire" in f["error"] and not f["success"] for f in failed)
    assert f"counted as no success: planner {len(failed)}" in terminal.table(result).caption
    with pytest.raises(DataError, match="all 4 episodes failed. .*the motor is on fire"):
        go(folder, "environment.kwargs={raises_at: 3}", out=tmp_path / "b.json")
    with pytest.raises(DataError, match="64 x 6. pixels now, and 64 x 64 before"):
        go(folder, "environment.kwargs={grows_at: 2}", out=tmp_path / "c.json")


def test_environments_that_disturb_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment.alone=true"):
        go(folder, "environment.kwargs={jealous: true}", out=tmp_path / "a.json")
    alone = go(folder, "environment.kwargs={jealous: true}", "environment.alone=true", out=tmp_path / "a.json")
    assert rows(alone)["planner"]["value"] == 1.0 and rows(alone)["planner"]["planning"]["rows_per_plan"] == 1


def test_choices(tmp_path: Path) -> None:
    space = "method.space={action: 6, discrete: 3}"
    folder = run_folder(tmp_path / "run", *MODEL, space, stride=2)
    given = ("environment.kwargs={choices: 3}", "environment.expert=null")
    result = go(folder, *given, "planner.solver={name: categorical, samples: 32, elites: 4, iterations: 3}")
    assert rows(result)["planner"]["value"] == 1.0 > rows(result)["do nothing"]["value"]
    with pytest.raises(ConfigError, match="categorical does"):
        go(folder, *given)
    with pytest.raises(ConfigError, match="2 continuous numbers; the model was trained with one of 3 choices"):
        go(folder)


def test_actions_without_bounds(folder: Path, tmp_path: Path) -> None:
    free = ("environment.kwargs={bounded: false}", "pictures.landscape=false", "baselines.random=false")
    with pytest.raises(ConfigError, match="without bounds.*planner.low and planner.high"):
        go(folder, *free)
    result = go(folder, *free, "planner.low=-1", "planner.high=[1, 1]", out=tmp_path / "a.json")
    assert rows(result)["planner"]["value"] == 1.0
    with pytest.raises(ConfigError, match="planner.low has 3 numbers"):
        go(folder, *free, "planner.low=[0, 0, 0]")


def test_proprioception_is_read_where_the_suite_says(tmp_path: Path) -> None:
    folder = run_folder(
        tmp_path / "run", *MODEL, "method.space={action: 4, proprio: 2}", "data.steps.proprio=p", stride=2
    )
    assert rows(go(folder, "environment.proprio=info.state"))["planner"]["value"] == 1.0
    with pytest.raises(ConfigError, match="environment.proprio=WHERE"):
        go(folder)
    with pytest.raises(ConfigError, match="info.away has 1 numbers, the model was trained with 2"):
        go(folder, "environment.proprio=info.away")


@pytest.mark.parametrize(
    ("overrides", "model", "said"),
    [
        ([], ["method.space.action=3"], r"has 2 number.s.; the model was trained on 3"),
        (["planner.horizon=9"], ["method.reach=8"], "a horizon of 9 steps; the model was trained to roll out 8"),
        (["planner.execute=4"], [], "execute=4, horizon=3|execute=4 of horizon=3"),
        (["planner.solver.name=cma"], [], "solver.name=cma"),
        (["goals.source=episodes"], [], "manifest|is not a folder"),
        (["environment.env=tests/None-v0"], [], "environment.env='tests/None-v0'.*pip install 'jepa.env.'"),
        (["environment.success=won"], [], "won"),
        (["environment.expert=tests.plan.stages:nobody"], [], "environment.expert.*nobody"),
        (["seeds=[1,1]"], [], "seeds: give different numbers"),
        (["goals={source: image}"], [], "needs a file"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], model: list[str], said: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", *MODEL, *model, stride=2)
    with pytest.raises((ConfigError, DataError), match=said):
        go(folder, *overrides)


def test_a_method_without_actions_is_refused(tmp_path: Path) -> None:
    settings = tiny.run_config(tmp_path)
    checkpoint.save(tmp_path / "run", 1, checkpoint.create(settings), None, {}, settings)
    with pytest.raises(ConfigError, match="'ijepa', which does not tell what actions lead to"):
        go(tmp_path / "run")


# --- goals of episodes and of files -----------------------------------------------------------------------------------


def test_goals_of_held_out_episodes(folder: Path, episodes: Path, tmp_path: Path) -> None:
    given = ("goals.source=episodes", f"goals.dataset={episodes}", "goals.offset=4")
    result = go(folder, *given, "episodes=8", out=tmp_path / "a.json")
    assert rows(result)["scripted expert"]["value"] == 1.0 == rows(result)["planner"]["value"]
    places = {(e["key"], e["frame"]) for e in result["episodes"]}
    assert len(places) == 8 and all(e["goal_frame"] == e["frame"] + 4 <= 20 for e in result["episodes"])
    assert result["task"]["goals"]["places"] == [[0, e["key"], e["frame"]] for e in result["episodes"]]
    again = go(folder, *given, "episodes=8", "planner.horizon=4", out=tmp_path / "b.json", beside=[result])
    assert again["fingerprint"] == result["fingerprint"], "how one plans is no part of the task"
    with pytest.raises(ConfigError, match="differ in .*goals.offset: 5 and 4"):
        go(folder, *given, "episodes=8", "goals.offset=5", beside=[result])


def test_pictures_are_those_of_the_states(folder: Path, episodes: Path) -> None:
    from tests.plan.stages import Line

    given = ["goals.source=episodes", f"goals.dataset={episodes}", "goals.offset=4", "episodes=8"]
    found, _ = problems(
        load_suite(LINE, given), Manifest.open(episodes), checkpoint.read_config(checkpoint.latest(folder)).data
    )
    stage = Line()
    stage.reset(seed=0)
    for problem in found:
        assert problem.start is not None and problem.goal is not None
        for state, frame in ((problem.start, problem.start_frame), (problem.goal, problem.goal_frame)):
            stage.put(state["state"])
            assert frame is not None and mean_difference(stage.render(), frame) < 0.003


def test_starts_are_drawn_evenly_and_all_of_them_at_most(folder: Path, episodes: Path) -> None:
    given = ("goals.source=episodes", f"goals.dataset={episodes}", "budget=1")
    result = go(folder, *given, "goals.offset=18", "episodes=12", "pictures.episodes=0")  # 3 starts in each of 4
    assert sorted((e["episode"], e["frame"]) for e in result["episodes"]) == [
        (i, t) for i in range(4) for t in range(3)
    ]
    for offset, count in ((18, 13), (21, 1)):
        with pytest.raises(
            ConfigError, match=f"goal {offset} environment steps later, episodes={count}.*up to 20 steps"
        ):
            go(folder, *given, f"goals.offset={offset}", f"episodes={count}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["goals.split=train"], "goals.split=train is a split for training.*val, test"),
        (["goals.split=proof"], "no split 'proof'"),
        (["environment.start=[{call: put, args: {state: qpos}}]"], r"array.s. qpos.*it has: .*state"),
        (["environment.start=[{call: put, args: {state: action}}]"], "'action' .*a row for every action"),
        (["environment.size=[32, 32]"], r"at 32 x 32 pixels .*frames of 64 x 64: set environment.size=\[64,64\]"),
        (["environment.kwargs={height: 48}"], "at 48 x 64 pixels .*frames of 64 x 64"),
        (["environment.start=[{call: put, args: {state: [50, 50]}}]", "goals.tolerance=0.01"], "looks different"),
        (["environment.goal=[]"], "environment.goal is empty"),
    ],
)
def test_episodes_that_do_not_fit(overrides: list[str], said: str, folder: Path, episodes: Path) -> None:
    given = ["goals.source=episodes", f"goals.dataset={episodes}", "goals.offset=4"]
    with pytest.raises((ConfigError, DataError), match=said):
        go(folder, *given, *overrides)


def test_a_goal_from_a_file(folder: Path, tmp_path: Path) -> None:
    from tests.plan.stages import Line

    stage = Line()
    stage.reset(seed=0)
    stage.put([30, 32])
    picture = Image.fromarray(stage.render())
    picture.save(tmp_path / "goal.png")
    given = ("goals.source=image", "goals.state={state: [30, 32]}")
    result = go(folder, *given, f"goals.image={tmp_path / 'goal.png'}", out=tmp_path / "a.json")
    assert rows(result)["planner"]["value"] == 1.0 > rows(result)["do nothing"]["value"]
    assert result["episodes"][0]["goal"] == {"state": [30, 32]}
    picture.resize((32, 32)).save(tmp_path / "small.png")
    with pytest.raises(ConfigError, match=r"64 x 64 pixels .*small.png has 32 x 32"):
        go(folder, *given, f"goals.image={tmp_path / 'small.png'}")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match="no picture that can be read"):
        go(folder, *given, f"goals.image={tmp_path / 'text.png'}")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        go(folder, *given, f"goals.image={tmp_path / 'none.png'}")
    with pytest.raises(ConfigError, match=r"array.s. state.*goals.state"):
        go(folder, "goals.source=image", f"goals.image={tmp_path / 'goal.png'}")


def test_another_result_must_be_one(tmp_path: Path) -> None:
    for text, said in (("{", "no JSON"), ('{"rows": []}', "no result of `jepa plan`")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=said):
            read(tmp_path / "x.json")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "y.json")


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_two_rooms(tmp_path: Path) -> None:
    """A model that knows the rooms reaches goals of held-out episodes; one that knows nothing of actions does not."""
    pytest.importorskip("stable_worldmodel")
    data = tmp_path / "tworoom"
    build("tworoom", data, overrides=["source.episodes={train: 1, val: 1, test: 4}", "source.steps=40"], progress=False)
    given = [f"goals.dataset={data}", "episodes=10", "budget=40", "pictures.episodes=0", "pictures.steps=5"]
    good = plan(run_folder(tmp_path / "a", data=data), "tworoom-demo", given, device="cpu", progress=False)
    found = rows(good)
    assert found["planner"]["value"] >= 0.9 and found["scripted expert"]["value"] >= 0.9
    assert found["planner"]["low"] > max(found["random"]["value"], found["do nothing"]["value"]) + 0.1
    assert np.mean([e["policies"]["planner"]["start_difference"] for e in good["episodes"]]) < 0.005
    blind = plan(run_folder(tmp_path / "b", "method.blind=true"), "tworoom-demo", given, device="cpu", progress=False)
    assert rows(blind)["planner"]["value"] < 0.5 and blind["fingerprint"] == good["fingerprint"]
    assert json.loads((tmp_path / "a" / "plans" / "tworoom-demo.json").read_text())["suite"] == "tworoom-demo"
