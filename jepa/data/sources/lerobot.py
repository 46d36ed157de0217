"""LeRobot data sets of robot episodes, layouts v2.0, v2.1 and v3.0: one sample per episode and camera.

    meta/info.json               layout, cameras, patterns of paths
    meta/episodes.jsonl          v2: length and task of each episode, whose video is a file of its own
    meta/episodes/*/*.parquet    v3: the same, and where in which video file each episode lies
    data/chunk-000/*.parquet     a row for every frame: action, observation.state, ...

The documented files are read here with pyarrow, not with the `lerobot` package: that one holds torch, torchvision,
torchcodec and PyAV to older versions than this package runs on. The task is the class, and cameras of one episode
share an original, so that they never end up on both sides of a split. With `source.arrays` actions, states and other
features that hold numbers come with the frames; an action that leads out of the last frame is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import DTYPES, ArrayConfig
from jepa.data.sources import recorded
from jepa.data.sources.base import Sample, Source, Span, hashed
from jepa.errors import ConfigError, DataError

_VERSIONS = ("v2.0", "v2.1", "v3.0")
_USUAL = {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Config:
    """Where the data set is, and which cameras are taken."""

    path: str = ""  # its folder, the one that holds meta/info.json
    repo: str = ""  # instead of path: its name on the Hugging Face hub, e.g. lerobot/pusht
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    camera: str | list[str] = "auto"  # one or several, e.g. observation.images.top; auto: the only one
    arrays: dict[str, str | list[str]] | None = None  # name: feature, e.g. {action: action}; null: frames only
    per_action: tuple[str, ...] | None = None  # arrays with a row for every action; null: action, reward, terminated

    def __post_init__(self) -> None:
        if self.path and self.repo:
            raise ConfigError(f"path={self.path!r} and repo={self.repo!r}: give only one of the two")
        if self.revision is not None and not self.repo:
            raise ConfigError(f"revision={self.revision!r} is for data sets from the hub: give repo as well")


@dataclass(frozen=True)
class Episode:
    """What one camera saw of an episode: the task of the build."""

    number: int
    camera: str
    file: str  # relative to the data set
    span: tuple[float, float] | None  # seconds of the file; None: all of it
    label: int
    data: str = ""  # file of the arrays, relative to the data set; "": none are read

    def __str__(self) -> str:
        return f"episode {self.number}, {self.camera} ({self.file})"


def open_source(config: Config) -> Source:
    """The source; tasks are episodes.

    Raises:
        ConfigError: no data set or camera given, no such camera, or pyarrow or huggingface_hub is missing.
        DataError: no LeRobot data set, of another layout, damaged, or the hub cannot be reached.
    """
    if not config.path and not config.repo:
        raise ConfigError("source.path is empty: say where the data set is, e.g. source.path=/my/robot")
    root = Path(config.path).expanduser() if config.path else _download(config, ["meta/**"])
    info = _info(root)
    cameras = _cameras(config, info)
    per_action = config.per_action or recorded.PER_ACTION
    where = recorded.places(config.arrays or {}, info["features"], per_action)
    if config.repo:
        data = ["data/**"] if where else []
        root = _download(config, ["meta/**", *data, *(f"videos/**{camera}/**" for camera in cameras)])
    v3 = info["codebase_version"] == "v3.0"
    found = list(_episodes_v3(root, cameras, _V3_DATA if where else []) if v3 else _episodes_v2(root, info))
    if not found:
        raise DataError(f"{root} lists no episodes")
    tasks = _task_names(root, info["codebase_version"])
    tasks += sorted({row["tasks"][0] for row in found if len(row["tasks"]) == 1} - set(tasks))
    several = sum(len(row["tasks"]) != 1 for row in found)
    notes = [f"{several} episodes have no task or several of them, and so no label"] if several else []
    splits: dict[str, list[Episode]] = {}
    for split, numbers in _splits(root, info).items():
        splits[split] = [
            Episode(row["episode_index"], camera, _file(root, info, row, camera), _span(row, camera),
                    tasks.index(row["tasks"][0]) if len(row["tasks"]) == 1 else -1,
                    _path(root, info, "data_path", row, _V3_DATA) if where else "")
            for row in found if row["episode_index"] in numbers for camera in cameras
        ]  # fmt: skip
    arrays = _schema(where, info, per_action)
    return Source(
        dict(splits), Maker(root, where), tasks, notes=notes, identity=lambda episode: f"episode {episode.number}",
        arrays=arrays,
    )  # fmt: skip


def _download(config: Config, patterns: list[str]) -> Path:
    """The wanted files of a data set on the hub, in the hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"source.repo needs huggingface_hub, which does not import here ({error}): pip install 'jepa[lerobot]', "
            "or fetch the data set yourself and give source.path"
        ) from None
    try:
        return Path(
            snapshot_download(config.repo, repo_type="dataset", revision=config.revision, allow_patterns=patterns)
        )
    except Exception as error:  # its errors have no common base: of the network, the name, access, the disk
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"cannot fetch {config.repo} from the Hugging Face hub: {said}. Check the name and the "
            "network (`hf auth login` for what is not public), or fetch it elsewhere and give source.path"
        ) from None


def _info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise DataError(f"{root} is no LeRobot data set: it has no meta/info.json")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        assert isinstance(info["features"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path} cannot be read ({error or 'no features'}): it is damaged; fetch it again") from None
    if version not in _VERSIONS:
        raise DataError(
            f"{root} has LeRobot's layout {version}, read are {', '.join(_VERSIONS)}. Convert it with lerobot's own "
            "conversion scripts"
        )
    return dict(info)


def _cameras(config: Config, info: dict[str, Any]) -> list[str]:
    kinds = {name: str(feature.get("dtype")) for name, feature in info["features"].items()}
    videos = [name for name, kind in kinds.items() if kind == "video"]
    if config.camera == "auto":
        if len(videos) == 1:
            return videos
        there = f"choose one or several of its {len(videos)}: {', '.join(videos)}" if videos else "it has none"
        raise ConfigError(f"source.camera=auto takes the only video of an episode; {there}")
    wanted = [config.camera] if isinstance(config.camera, str) else list(dict.fromkeys(config.camera))
    for name in wanted:
        if name not in videos:
            state = "holds single images, not videos" if kinds.get(name) == "image" else "is not there"
            raise ConfigError(f"source.camera: {name} {state}; videos are: {', '.join(videos) or 'none'}")
    if not wanted:
        raise ConfigError(f"source.camera is empty; videos are: {', '.join(videos) or 'none'}")
    return wanted


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged; fetch it again") from None


def _rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet file; with `columns` those that it has of them."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"LeRobot's layout v3.0 needs pyarrow, which does not import here ({error}): pip install 'jepa[lerobot]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            rows: list[dict[str, Any]] = file.read([c for c in columns if c in there] if columns else None).to_pylist()
            return rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged; fetch it again") from None


def _episodes_v2(root: Path, info: dict[str, Any]) -> Iterator[dict[str, Any]]:
    size = int(info.get("chunks_size") or 1000)
    for row in _lines(root / "meta" / "episodes.jsonl"):
        yield _checked(root, row | {"episode_chunk": int(row.get("episode_index", 0)) // size})


_V3 = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
_V3_DATA = ["data/chunk_index", "data/file_index"]


def _episodes_v3(root: Path, cameras: list[str], data: list[str]) -> Iterator[dict[str, Any]]:
    columns = ["episode_index", "tasks", *data, *(f"videos/{camera}/{c}" for camera in cameras for c in _V3)]
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        for row in _rows(path, columns):
            yield _checked(root, row, columns)


def _checked(root: Path, row: dict[str, Any], columns: list[str] | None = None) -> dict[str, Any]:
    missing = [c for c in columns or ["episode_index"] if c != "tasks" and row.get(c) is None]
    tasks = row.get("tasks") or []
    if missing or not isinstance(tasks, list):
        raise DataError(f"{root / 'meta'}: an episode has no {', '.join(missing) or 'list of tasks'}: {row}")
    return row | {"tasks": [str(task) for task in tasks]}


def _task_names(root: Path, version: str) -> list[str]:
    """The tasks in the order of their numbers."""
    path = root / "meta" / ("tasks.parquet" if version == "v3.0" else "tasks.jsonl")
    if not path.is_file():
        return []
    rows = _rows(path) if path.suffix == ".parquet" else list(_lines(path))
    # v3 keeps the name in the table's index, which parquet stores under a made-up name or under "task"
    named = [(int(row["task_index"]), str(next(v for k, v in row.items() if k != "task_index"))) for row in rows]
    return list(dict.fromkeys(name for _, name in sorted(named)))


def _splits(root: Path, info: dict[str, Any]) -> dict[str, range]:
    """Episodes by split: "train: 0:80" are the first 80."""
    found = {}
    for name, text in (info.get("splits") or {"train": f"0:{info.get('total_episodes', 2**31)}"}).items():
        match = re.fullmatch(r"(\d+):(\d+)", str(text))
        if not match:
            raise DataError(f"{root}/meta/info.json: split {name!r} is {text!r}, expected FIRST:END")
        found[_USUAL.get(name, name)] = range(int(match[1]), int(match[2]))
    return found


def _file(root: Path, info: dict[str, Any], row: dict[str, Any], camera: str) -> str:
    places = [f"videos/{camera}/{c}" for c in ("chunk_index", "file_index")]
    return _path(root, info, "video_path", row, places, video_key=camera)


def _path(root: Path, info: dict[str, Any], pattern: str, row: dict[str, Any], places: list[str], **more: str) -> str:
    """A file of an episode, by one of the patterns of meta/info.json."""
    numbers = {place.rpartition("/")[2]: row.get(place) for place in places}
    try:
        name = str(info[pattern]).format(
            episode_index=row["episode_index"], episode_chunk=row.get("episode_chunk"), **numbers, **more
        )
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{root}/meta/info.json: {pattern}={info.get(pattern)!r} is no pattern ({error})") from None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root}/meta/info.json: {pattern} leads out of the data set: {name}")
    return name


def _schema(where: recorded.Places, info: dict[str, Any], per_action: tuple[str, ...]) -> dict[str, ArrayConfig]:
    """What the features hold, by meta/info.json."""
    found = {}
    for name, keys in where.items():
        features = [info["features"][key] for key in keys]
        kinds = {str(feature.get("dtype")) for feature in features}
        if not kinds <= {*DTYPES, "int32", "int16", "uint8", "float16"}:
            raise ConfigError(f"source.arrays.{name}: {', '.join(keys)} hold {', '.join(sorted(kinds))}, not numbers")
        rows = [np.zeros((1, *feature.get("shape", [1])), dtype=str(feature["dtype"])) for feature in features]
        one = recorded.gather({name: keys}, dict(zip(keys, rows, strict=True)).__getitem__)
        names = features[0].get("names") if len(keys) == 1 else None
        names = next(iter(names.values()), None) if isinstance(names, dict) else names
        config = recorded.schema(one, per_action)[name]
        fits = isinstance(names, list) and len(names) == config.size
        found[name] = replace(config, names=tuple(map(str, names or ()))) if fits else config
    return found


def _table(path: Path, number: int, keys: list[str]) -> dict[str, npt.NDArray[Any]]:
    """The features of an episode, (T, numbers) each."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"LeRobot's actions and states need pyarrow, which does not import here ({error}): pip install "
            "'jepa[lerobot]'"
        ) from None
    try:
        table = pq.read_table(path, columns=[*keys, "frame_index"], filters=[("episode_index", "=", number)])
        table = table.sort_by("frame_index")
        return {key: np.array(table[key].to_pylist(), dtype=_numbers(table.schema.field(key).type)) for key in keys}
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        said = str(error).splitlines()[0]
        raise DataError(f"{path.name} cannot be read ({said}): it is damaged; fetch it again") from None


def _numbers(kind: Any) -> Any:
    """The type of the numbers in a column, of lists or not."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind.to_pandas_dtype()


def _span(row: dict[str, Any], camera: str) -> tuple[float, float] | None:
    start = row.get(f"videos/{camera}/from_timestamp")
    return None if start is None else (float(start), float(row[f"videos/{camera}/to_timestamp"]))


@dataclass(frozen=True)
class Maker:
    """Names the part of a file that is an episode."""

    root: Path
    where: recorded.Places

    def __call__(self, episode: Episode) -> Sample:
        path = self.root / episode.file
        original = hashed("episode", episode.number)
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self.where:
            keys = list(dict.fromkeys(key for keys in self.where.values() for key in keys))
            arrays = recorded.gather(self.where, _table(self.root / episode.data, episode.number, keys).__getitem__)
        if episode.span is not None:
            return Sample(path, episode.label, original, str(episode), span=Span(*episode.span), arrays=arrays)
        try:
            return Sample(path.read_bytes(), episode.label, original, str(episode), arrays=arrays)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None


__all__ = ["Config", "Episode", "Maker", "open_source"]
