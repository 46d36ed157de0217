"""Arrays of episodes: schema, statistics, and files that are damaged."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jepa.data import Manifest, arrays, checkup
from jepa.data.arrays import Array, ArrayConfig, Statistics
from jepa.errors import ConfigError, DataError
from tests.data.envs.test_rollouts import made


def test_statistics_in_parts_are_those_of_everything() -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(1e6, 2.0, (5000, 3))  # far from zero, where a sum of squares would lose everything
    values[4000:] += 5
    found = Statistics(ArrayConfig("frame", 3, "float64"))
    for part in np.split(values, [1, 7, 7, 4000]):
        found.add(part)
    result = found.result()
    assert result.count == 5000
    np.testing.assert_allclose(result.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(result.std, values.std(0), rtol=1e-9)
    np.testing.assert_array_equal([result.min, result.max], [values.min(0), values.max(0)])
    assert Statistics(ArrayConfig("frame", 3)).result() == Array("frame", 3)


def test_an_array_survives_the_manifest() -> None:
    found = Statistics(ArrayConfig("action", 4, "float32", ("x", "y"), ("m", "m"), steps=2, pad="last"))
    found.add(np.arange(12, dtype=np.float32).reshape(3, 4))
    array = found.result()
    assert array.count == 6 and array.mean == (5.0, 6.0, 5.0, 6.0)
    assert Array.of(json.loads(json.dumps(asdict(array)))) == array


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data + b"1234",
        lambda data: b"\x80\x04" + data,
        lambda data: data.replace(b"<f4", b"<i4"),
        lambda data: data.replace(b"(6, 2)", b"(2, 6)"),
        lambda data: b"",
    ],
)
def test_a_damaged_array_is_told(damage: object) -> None:
    config = ArrayConfig("frame", 2)
    whole = arrays.to_npy(np.ones((6, 2), dtype=np.float32))
    np.testing.assert_array_equal(arrays.from_npy(whole, "x", config, 6), 1)
    with pytest.raises(DataError, match="array 'x' cannot be read"):
        arrays.from_npy(damage(whole), "x", config, 6)  # type: ignore[operator]
    pickled = io.BytesIO()
    np.save(pickled, np.array([[None, None]] * 6), allow_pickle=True)
    with pytest.raises(DataError, match="array 'x' cannot be read"):
        arrays.from_npy(pickled.getvalue(), "x", config, 6)


def test_names_that_mean_something_else() -> None:
    for name in ("cls", "json", "images", "Action", "a.b", ""):
        with pytest.raises(ConfigError, match="cannot be an array's name"):
            arrays.check_names([name])


def test_a_manifest_without_arrays_says_so_and_a_changed_one_is_told(tmp_path: Path) -> None:
    found = made(tmp_path / "out", episodes="{train: 2}")
    assert checkup.check_built(found.root).summary().startswith("2 videos: 2 ok")
    path = found.root / "manifest.json"
    values = json.loads(path.read_text())
    values["arrays"]["action"]["dtype"] = "object"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="lacks or garbles"):
        Manifest.open(found.root)
    values["arrays"]["action"] |= {"dtype": "float32", "size": 3}
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="array 'action' cannot be read .*expected float32"):
        Manifest.open(found.root).split("train").read_array(0, "action")
    del values["arrays"]
    path.write_text(json.dumps(values))
    assert Manifest.open(found.root).arrays == {}
