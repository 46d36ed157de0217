"""Shards on a web server: the same samples as on a disk, through a bounded cache, whatever the server does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jepa.config import DataConfig
from jepa.data import Manifest, eval_batches, remote
from jepa.data.build import build
from jepa.data.loader import make_loader
from jepa.data.order import Order
from jepa.data.remote import RemoteError, Url
from jepa.data.samples import TrainData
from jepa.errors import ConfigError, DataError
from tests import disk
from tests.data.conftest import write_tars
from tests.data.webserver import Server

COUNTS = (6, 9, 4, 8, 5, 8)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, COUNTS)
    return folder


@pytest.fixture
def server(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.05, 0.15))
    monkeypatch.setattr(remote, "_failed", {})
    monkeypatch.setattr(remote, "_STALL", 0.4)
    found = Server(tars)
    yield found
    found.close()


def config(folder: Path, **changes: object) -> DataConfig:
    given = DataConfig(path=str(folder), image_size=(8, 8), workers=0, shuffle_shards=2, mean=(0, 0, 0), std=(1, 1, 1))
    return replace(given, **changes)  # type: ignore[arg-type]


def batches(data: DataConfig, run_dir: Path | None = None) -> list[np.ndarray]:
    loader = make_loader(TrainData(data, 0, run_dir=run_dir), batch=8, total_steps=10)
    return [np.concatenate([batch.images.flatten(1).numpy(), batch.labels[:, None].numpy()], 1) for batch in loader]


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*/*") if path.name != "lock")


def indexed(server: Server, out: Path) -> Path:
    """The tars of the server as a data set."""
    pattern = f"source.shards={server.url}/part-{{000..005}}.tar"
    build("webdataset", out, overrides=[pattern, "splits.fractions={}", "name=away"], progress=False)
    return out


def test_the_same_samples_as_from_a_disk(
    server: Server, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = tmp_path / "near"
    build("webdataset", near, overrides=[f"source.shards={tars}/part-*.tar", "splits.fractions={}"], progress=False)
    far = indexed(server, tmp_path / "far")
    assert str(Manifest.open(far).splits["train"].shards[0].path) == f"{server.url}/part-000.tar"
    asked = sum(server.asked.values())
    wanted = batches(config(near))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, batches(config(far)), strict=True))
    assert sum(server.asked.values()) == asked  # they came with the indexing
    for path in files(tmp_path / "cache"):
        path.unlink()
    assert all(np.array_equal(a, b) for a, b in zip(wanted, batches(config(far, workers=2)), strict=True))
    assert sum(server.asked.values()) == asked + len(COUNTS)  # each once, though three processes read them
    # repacked, they are shards like any other
    pattern = f"source.shards={server.url}/part-{{000..005}}.tar"
    copied = build("webdataset", tmp_path / "copy", overrides=[pattern, "source.copy=true"], progress=False)
    assert sum(len(split) for split in copied.splits.values()) == sum(COUNTS)


def test_the_cache_stays_within_its_bounds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, cache = indexed(server, tmp_path / "far"), tmp_path / "cache"
    wanted = batches(config(far))
    sizes = sorted(shard.size for shard in Manifest.open(far).splits["train"].shards)
    for path in files(cache):
        path.unlink()
    limit = sum(sizes[-4:]) + 1000  # two blocks of two shards
    monkeypatch.setenv("JEPA_CACHE_GB", str(limit / 1e9))
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, sum(p.stat().st_size for p in files(cache) if p.exists()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = batches(config(far, workers=2))
    finally:
        over.set()
        watcher.join()
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert 0 < most <= limit
    with pytest.raises(ConfigError, match="JEPA_CACHE_GB: the cache has room for .*shuffle_shards=3"):
        batches(config(far, shuffle_shards=3))
    for path in files(cache):  # what is there is given whatever the limit
        path.unlink()
    monkeypatch.setenv("JEPA_CACHE_GB", "1e-6")
    with pytest.raises(ConfigError, match="has .* bytes, the cache only room for 1000: raise JEPA_CACHE_GB"):
        remote.local(Url(f"{server.url}/part-001.tar"))
    monkeypatch.setenv("JEPA_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="JEPA_CACHE_GB='much'"):
        remote.local(Url(f"{server.url}/part-001.tar"))


def test_the_one_read_longest_ago_goes_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [Url(f"{server.url}/part-{i:03d}.tar") for i in range(3)]
    first, second = (remote.local(url) for url in urls[:2])
    os.utime(first, (2000, 2000))
    os.utime(second, (1000, 1000))
    left = first.parent.parent / "abandoned" / "partial"  # of a process that was killed
    left.parent.mkdir()
    left.write_bytes(bytes(5000))
    room = first.stat().st_size + (server.folder / "part-002.tar").stat().st_size
    monkeypatch.setenv("JEPA_CACHE_GB", str(room / 1e9))
    third = remote.local(urls[2])
    assert files(tmp_path / "cache") == sorted([first, third]) and not left.exists()
    assert third.read_bytes() == (server.folder / "part-002.tar").read_bytes()


def test_a_clock_that_was_set_back(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that were read in the future go last, which costs a transfer and nothing else."""
    urls = [Url(f"{server.url}/part-{i:03d}.tar") for i in range(3)]
    for url in urls[:2]:
        os.utime(remote.local(url), (4e9, 4e9))
    room = max((server.folder / url.name).stat().st_size for url in urls) * 2
    monkeypatch.setenv("JEPA_CACHE_GB", str(room / 1e9))
    for url in [*urls, *urls]:
        assert remote.local(url).read_bytes() == (server.folder / url.name).read_bytes()
        assert sum(path.stat().st_size for path in files(tmp_path / "cache")) <= room


def test_a_cache_on_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the server's, and no part of a shard is left that could be taken for it."""
    url = Url(f"{server.url}/part-001.tar")
    with disk.small(tmp_path / "small", "16k") as small:
        disk.needed(small)
        monkeypatch.setenv("JEPA_CACHE", str(small / "cache"))
        with pytest.raises(RemoteError, match=r"cannot be kept in .*: No space left on device.*JEPA_CACHE"):
            remote.local(url)
        assert files(small / "cache") == []
        disk.remount(small, "size=16m")
        assert remote.local(url).read_bytes() == (server.folder / url.name).read_bytes()
        disk.remount(small, "ro")
        assert remote.local(url).is_file()  # what is there may be read
        with pytest.raises(RemoteError, match=r"cannot be kept in .*: Read-only file system.*JEPA_CACHE"):
            remote.local(Url(f"{server.url}/part-002.tar"))


def test_faults_that_pass(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK", 20_000)  # so that a fault comes in the middle
    name = "part-001.tar"
    for faults in (["500", "503"], ["", "truncate", "", "truncate"], ["", "", "stall"], ["429"]):
        server.faults[name] = list(faults)
        path = remote.local(Url(f"{server.url}/{name}"))
        assert path.read_bytes() == (server.folder / name).read_bytes() and server.faults[name] == []
        path.unlink()
    server.ranges = False
    assert remote.local(Url(f"{server.url}/{name}")).read_bytes() == (server.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        ("500", "the server answers 500.* after 3 tries", 3),
        ("truncate", "part-002.tar cannot be read: .* after 3 tries", 3),
        ("stall", "no byte came for 0.4 s after 3 tries", 3),
        ("403", "the server answers 403", 1),
    ],
)
def test_faults_that_stay(fault: str, said: str, requests: int, server: Server, tmp_path: Path) -> None:
    url = Url(f"{server.url}/part-002.tar?key=secret")
    size = remote.size_of(url)
    server.asked.clear()
    server.faults["part-002.tar"] = [fault] * 9
    with pytest.raises(RemoteError, match=said) as caught:
        remote.local(url, size)
    assert f"{server.url}/part-002.tar cannot be read" in str(caught.value) and "secret" not in str(caught.value)
    assert server.asked["part-002.tar"] == requests and files(tmp_path / "cache") == []
    with pytest.raises(RemoteError, match=said):  # at once, without asking again
        remote.local(url, size)
    assert server.asked["part-002.tar"] == requests
    server.faults.clear()
    time.sleep(0.3)
    assert remote.local(url, size).stat().st_size == size  # nothing is left of the failure


def test_a_run_stops_and_nothing_is_quarantined(server: Server, tmp_path: Path) -> None:
    far = indexed(server, tmp_path / "far")
    for path in files(tmp_path / "cache"):
        path.unlink()
    server.always["part-003.tar"] = "500"
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(DataError, match=r"part-003.tar cannot be read: the server answers 500.*--resume"):
        batches(config(far), run)
    assert not (run / "quarantine.jsonl").exists()
    split = Manifest.open(far).splits["train"]
    with pytest.raises(RemoteError):
        split.read(int(split.shard_sizes[:3].sum()))
    with pytest.raises(RemoteError, match="^http"):  # as it is: the sample is not to blame
        list(eval_batches(split, (8, 8), 8))


def test_a_tar_that_was_replaced_or_is_gone(server: Server, tmp_path: Path) -> None:
    url = Url(f"{server.url}/part-004.tar")
    with pytest.raises(RemoteError, match="bytes, 5 when it was indexed: replaced"):
        remote.local(url, 5)
    with pytest.raises(RemoteError, match="nowhere.tar cannot be read: (there is no such file|the server answers 404)"):
        remote.local(Url(f"{server.url}/nowhere.tar"))
    with pytest.raises(RemoteError, match="127.0.0.1:9/x.tar cannot be read: .* after 3 tries"):
        remote.local(Url("http://127.0.0.1:9/x.tar"))


@pytest.mark.parametrize(
    "bad", ["pipe:cat x.tar", "simplecache::https://a/b.tar", "ftp://a/b.tar", "file:///etc/x.tar"]
)
def test_what_is_not_read(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pipes and no chains"):
        build("webdataset", tmp_path / "out", overrides=[f"source.shards={bad}"], progress=False)
    with pytest.raises(ConfigError, match="does not list its files"):
        remote.listed("https://host/x-*.tar")


def test_shards_ahead_are_those_that_come() -> None:
    sizes = np.array([5, 7, 3, 6, 4, 8, 2], dtype=np.int64)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for lanes in (1, 3):
        order = Order(3, sizes, shuffle_shards=2, lanes=lanes)
        for start in range(0, 2 * order.size, 5):
            g = np.arange(start, start + 5)
            ahead = order.shards_ahead(g, 2)
            assert set(shard_of[order(g[-lanes:])].tolist()) <= set(ahead)  # each lane's last sample is in its block
            if lanes == 1:  # the whole next block, in the order in which blocks come
                coming = shard_of[order(np.arange(start + 4, start + 4 + order.size))]
                blocks = list(dict.fromkeys(coming.tolist()))
                assert set(blocks[: len(set(ahead)) - 2]) <= set(ahead)
