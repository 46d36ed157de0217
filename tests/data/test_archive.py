"""Images and videos in tars and zips: the same samples as from a folder, without unpacking."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from jepa.data import Manifest
from jepa.data.build import build
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture
from tests.data.video.films import film

FILES = {f"{split}/{name}/{i}.png": encoded(picture(10 * k + i)) for k, (split, name) in enumerate(
    [("train", "cat"), ("train", "dog"), ("val", "cat"), ("test", "dog")]) for i in range(3)}  # fmt: skip


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return out.getvalue()


def made(path: Path, out: Path, *overrides: str) -> Manifest:
    return build("archive", out, overrides=[f"source.path={path}", "name=same", *overrides], progress=False)


def contents(found: Manifest) -> dict[str, list[tuple[bytes, int]]]:
    return {
        name: sorted((split.read(i)[0], int(split.labels[i])) for i in range(len(split)))
        for name, split in found.splits.items()
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[bytes, int]]]:
    """What the same files give from a folder."""
    root = tmp_path_factory.mktemp("plain")
    for name, data in FILES.items():
        (root / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "files" / name).write_bytes(data)
    found = build("folder", root / "out", overrides=[f"source.path={root / 'files'}"], progress=False)
    assert found.classes == ["cat", "dog"] and set(found.splits) == {"train", "val", "test"}
    return contents(found)


def below(prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): data for name, data in FILES.items() if name.startswith(prefix)}


def test_however_they_are_packed(wanted: dict[str, list[tuple[bytes, int]]], tmp_path: Path) -> None:
    """One archive; one folder around everything; one for each split; one for each class; tars in a tar."""
    ends = ("train/cat", "train/dog", "val/cat", "test/dog")
    packed = {
        "one.zip": zipped(FILES),
        "one.tar": tarred({f"./{name}": data for name, data in FILES.items()}),
        "around.zip": zipped({f"all/{n}": d for n, d in FILES.items()} | {"__MACOSX/._x.png": b"", "all/a.txt": b"a"}),
        "splits/train.tar": tarred(below("train/")),
        "splits/val.zip": zipped(below("val/")),
        "splits/test.tar": tarred(below("test/")),
        "classes/train/cat.tar": tarred(below("train/cat/")),
        "classes/train/dog.zip": zipped(below("train/dog/")),
        "classes/val/cat.tar": tarred(below("val/cat/")),
        "classes/test/dog.tar": tarred(below("test/dog/")),
        "nested.tar": tarred({f"{k}.tar": tarred(below(f"{k}/")) for k in ends}),
    }  # fmt: skip
    for name, data in packed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for number, name in enumerate(("one.zip", "one.tar", "around.zip", "splits", "classes", "nested.tar")):
        found = made(tmp_path / name, tmp_path / f"out-{number}")
        assert contents(found) == wanted and found.classes == ["cat", "dog"], name
    named = made(tmp_path / "splits", tmp_path / "named", "source.splits={train: test.tar, test: train.tar}")
    assert contents(named)["test"] == wanted["train"] and "val" in named.splits
    part = made(tmp_path / "one.zip", tmp_path / "part", "source.inside=train", "splits.fractions={}")
    assert contents(part) == {"train": wanted["train"]}


def test_videos_and_both(tmp_path: Path) -> None:
    both = FILES | {f"train/jump/{i}.mp4": film(8) for i in range(3)}
    (tmp_path / "both.zip").write_bytes(zipped(both))
    with pytest.raises(ConfigError, match="images and videos. Say which: image or video"):
        made(tmp_path / "both.zip", tmp_path / "out")
    found = made(tmp_path / "both.zip", tmp_path / "out", "source.media=video", "splits.fractions={}")
    assert found.media == "video" and len(found.splits["train"]) == 3


def test_what_is_broken_is_left_out_and_listed(tmp_path: Path) -> None:
    files = {name: FILES[f"train/cat/{name}"] for name in ("0.png", "1.png", "2.png")}
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "cut.tar").write_bytes(tarred(files)[:1700])
    (tmp_path / "mixed" / "text.zip").write_bytes(b"no archive at all")
    damaged = bytearray(zipped(files))
    damaged[60:64] = b"\xff\xff\xff\xff"  # inside the first file's data
    (tmp_path / "mixed" / "damaged.zip").write_bytes(damaged)
    found = made(tmp_path / "mixed", tmp_path / "out", "splits.fractions={}", "source.classes=none")
    said = {bad["source"]: bad["reason"] for bad in found.bad}
    assert "cut off or damaged" in said["cut.tar"] and "cut off or damaged" in said["text.zip"]
    assert "cannot be read out of damaged.zip" in said["damaged/0.png"]
    assert len(found.splits["train"]) >= 2


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source.path is empty"):
        made(Path(), tmp_path / "out", "source.path=''")
    with pytest.raises(DataError, match="does not exist"):
        made(tmp_path / "absent.zip", tmp_path / "out")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "x.tar.gz").write_bytes(tarred(FILES, "w:gz"))
    with pytest.raises(DataError, match="x.tar.gz is compressed as a whole: unpack it once, or zip its files"):
        made(tmp_path / "packed", tmp_path / "out")
    with pytest.raises(DataError, match="is compressed with gzip"):
        made(tmp_path / "packed" / "x.tar.gz", tmp_path / "out")
    (tmp_path / "text.zip").write_bytes(zipped({"a/readme.txt": b"text"}))
    with pytest.raises(DataError, match="no images in .*: found 1 .txt"):
        made(tmp_path / "text.zip", tmp_path / "out")
    (tmp_path / "one.zip").write_bytes(zipped(FILES))
    with pytest.raises(DataError, match=r"nothing for val \(valid\); at the top there are test, train, val"):
        made(tmp_path / "one.zip", tmp_path / "out", "source.splits={train: train, val: valid}")
