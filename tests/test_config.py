from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jepa import config
from jepa.config import Duration, RunConfig
from jepa.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    size: tuple[int, int] = (1, 1)
    note: str | None = None


@dataclass(frozen=True)
class Outer:
    count: int = 1
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    flag: bool = False


def test_nested_values_and_defaults() -> None:
    built = config.build(Outer, {"inner": {"rate": "1e-3", "size": 7}, "names": ["x"], "count": 2.0})
    assert built == Outer(2, Inner(1e-3, "a", (7, 7)), ("x",), False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cuont": 1}, ["cuont", "'count'", "inner"]),
        ({"inner": {"rat": 1}}, ["inner.rat", "'rate'"]),
        ({"count": "many"}, ["count", "int", "'many'"]),
        ({"count": True}, ["count", "bool"]),
        ({"flag": 1}, ["flag", "bool"]),
        ({"count": 1.5}, ["count", "1.5"]),
        ({"inner": 3}, ["inner", "mapping"]),
        ({"inner": {"kind": "c"}}, ["inner.kind", "'a', 'b'"]),
        ({"inner": {"size": [1, 2, 3]}}, ["inner.size", "2 values"]),
        ({"names": "x"}, ["names", "list"]),
    ],
)
def test_wrong_values_say_where_what_and_what_is_allowed(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(Outer, values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given_", "steps"),
    [({"steps": 7}, 7), ({"epochs": 2}, 63), ({"epochs": 0.5}, 16), ({"samples": 33}, 2), ({"samples": 32}, 1)],
)
def test_durations(given_: dict[str, float], steps: int) -> None:
    assert config.build(Duration, given_).to_steps(batch=32, dataset_size=1000) == steps


@pytest.mark.parametrize("bad", [{}, {"steps": 1, "epochs": 1}, {"steps": -1}])
def test_a_duration_is_exactly_one_of_three(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="duration"):
        config.build(Duration, bad)


def test_a_duration_replaces_another(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {duration: {epochs: 9}}")
    run = config.load(file, ["train.duration.steps=5", "optim.warmup.steps=1"])
    assert (run.train.duration, run.optim.warmup) == (Duration(steps=5), Duration(steps=1))
    assert run.name == "a"


def test_a_key_called_samples_beside_others_is_no_duration(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("monitor: {samples: 100, knn_k: 7}")
    run = config.load(file, ["monitor.samples=64"])
    assert (run.monitor.samples, run.monitor.knn_k) == (64, 7)


def test_extends_overlay_override_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "seed: 1\noptim: {lr: 0.1, betas: [0.8, 0.9]}\nmethod: {name: ijepa, ema: [0, 1]}"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base\noptim: {betas: [0.5, 0.6]}\nseed: 2")
    run = config.load(child, ["method.ema=[0.1, 0.2]"])
    assert (run.seed, run.optim.lr, run.optim.betas) == (2, 0.1, (0.5, 0.6))
    assert run.method == {"name": "ijepa", "ema": [0.1, 0.2]}
    (tmp_path / "grandchild.yaml").write_text("extends: child")
    with pytest.raises(ConfigError, match="one level"):
        config.load(tmp_path / "grandchild.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("seed: 1\nseed: 2", "given twice"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("? [1]\n: 2", "plain text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        config.load(file)
    assert "x.yaml" in str(caught.value)


def test_missing_file_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError, match="ijepa-vit-b16"):
        config.load("ijepa-vitb16")


@pytest.mark.parametrize("bad", ["noequals", "=3", "a.b=[1"])
def test_bad_overrides(bad: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        config.override({}, [bad])


@given(
    st.integers(0, 2**31),
    st.floats(1e-9, 1e3, allow_nan=False),
    st.one_of(
        st.builds(Duration, steps=st.integers(0, 10**9)),
        st.builds(Duration, epochs=st.floats(0, 1e4, allow_nan=False)),
    ),
)
def test_yaml_round_trip(seed: int, lr: float, duration: Duration) -> None:
    run = RunConfig(
        seed=seed, optim=config.OptimConfig(lr=lr), train=config.TrainConfig(duration=duration, trackers=())
    )
    assert config.build(RunConfig, yaml.safe_load(config.to_yaml(run))) == run


def test_all_three_null_fields_of_a_duration_are_not_written() -> None:
    assert "null" not in config.to_yaml(Duration(steps=3))


def test_an_overlay_for_every_entry_leaves_out_what_is_left_out() -> None:
    base = {"parts": {"a": {"x": 1}, "b": None}, "other": {}}
    assert config.merge(base, {"parts": {"*": {"x": 2, "deep": {"*": {"y": 3}}}}, "missing": {"*": {"x": 1}}}) == {
        "parts": {"a": {"x": 2, "deep": {}}, "b": None}, "other": {}, "missing": {},
    }  # fmt: skip
