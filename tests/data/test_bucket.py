"""Shards in a bucket: the same samples as from a disk, through s3fs, from a server of S3 (moto) on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec.config
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from jepa.data import Manifest, remote
from jepa.data.build import build
from jepa.data.remote import RemoteError, Url
from tests.data.conftest import write_tars

COUNTS = (6, 9, 4)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a bucket that holds the tars, and an environment that finds it."""
    for name, value in {
        "NO_PROXY": "127.0.0.1",
        "JEPA_CACHE": str(tmp_path / "cache"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "WAITS", (0.05, 0.15))
    monkeypatch.setattr(remote, "_failed", {})
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in sorted(tars.iterdir()):
        client.upload_file(str(path), "shards", f"set/{path.name}")
    yield "shards"
    for found in client.list_objects_v2(Bucket="shards").get("Contents", []):
        client.delete_object(Bucket="shards", Key=found["Key"])
    client.delete_bucket(Bucket="shards")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("pattern", ["part-*.tar", "part-{000..002}.tar"])
def test_the_same_samples_as_from_a_disk(pattern: str, bucket: str, tars: Path, tmp_path: Path) -> None:
    splits = {}
    for name, where in {"near": f"{tars}/{pattern}", "far": f"s3://{bucket}/set/{pattern}"}.items():
        build(
            "webdataset", tmp_path / name, overrides=[f"source.shards={where}", "splits.fractions={}"], progress=False
        )
        splits[name] = Manifest.open(tmp_path / name).splits["train"]
    near, far = splits["near"], splits["far"]
    assert [str(shard.path) for shard in far.shards] == [f"s3://shards/set/part-00{i}.tar" for i in range(3)]
    assert np.array_equal(near.labels, far.labels) and far.shard_sizes.tolist() == list(COUNTS)
    assert [near.read(i) for i in range(len(near))] == [far.read(i) for i in range(len(far))]
    assert {path.name for path in (tmp_path / "cache").glob("*/*.tar")} == {f"part-00{i}.tar" for i in range(3)}


def test_large_shards_come_in_parts(bucket: str, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    whole = (tars / "part-001.tar").read_bytes()
    assert len(whole) > 5000
    assert remote.local(Url(f"s3://{bucket}/set/part-001.tar")).read_bytes() == whole


def test_what_is_not_there_or_was_replaced(bucket: str) -> None:
    with pytest.raises(RemoteError, match=r"^s3://shards/set/x\.tar cannot be read: there is no such file\."):
        remote.local(Url(f"s3://{bucket}/set/x.tar"))
    with pytest.raises(RemoteError, match=r"^s3://nowhere/x\.tar cannot be read: there is no such file\."):
        remote.local(Url("s3://nowhere/x.tar"))
    with pytest.raises(RemoteError, match=r"nothing of that name"):
        remote.listed(f"s3://{bucket}/other/*.tar")
    with pytest.raises(RemoteError, match=r"bytes, 5 when it was indexed: replaced"):
        remote.local(Url(f"s3://{bucket}/set/part-000.tar"), 5)


def test_another_object_of_that_name(bucket: str, tars: Path) -> None:
    """What was listed once is asked for again: a size from a listing kept in memory would be the old one."""
    url = remote.listed(f"s3://{bucket}/set/*.tar")[0]
    old = remote.size_of(url)
    boto3.client("s3").upload_file(str(tars / "part-001.tar"), bucket, "set/part-000.tar")
    assert remote.size_of(url) == (tars / "part-001.tar").stat().st_size != old


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at once, with what to do: waiting does not bring them. Public buckets need none."""
    boto3.client("s3").put_object_acl(Bucket=bucket, Key="set/part-000.tar", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match=r"no credentials.*FSSPEC_S3_ANON=true") as caught:
        remote.local(Url(f"s3://{bucket}/set/part-000.tar"))
    assert " tries " not in str(caught.value)
    remote._failed.clear()
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    monkeypatch.setattr(fsspec.config, "conf", {})
    fsspec.config.set_conf_env(fsspec.config.conf)  # as on import
    assert remote.local(Url(f"s3://{bucket}/set/part-000.tar")).is_file()


def test_nobody_answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match=r"set/part-000\.tar cannot be read: .*127\.0\.0\.1:9.* after 3 tries"):
        remote.local(Url(f"s3://{bucket}/set/part-000.tar"))
