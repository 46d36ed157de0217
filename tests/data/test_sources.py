"""Folders, IDX files and foreign tars: what they hold, how they are split, what is refused and why."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.data import Manifest, eval_batches
from jepa.data.build import build
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture, write_tars


def make_folder(root: Path, files: dict[str, bytes | int]) -> Path:
    """Files by path; a number stands for that picture as PNG."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(content)) if isinstance(content, int) else content)
    return root


def folder(source: Path, out: Path, *overrides: str) -> Manifest:
    return build("folder", out, overrides=[f"source.path={source}", *overrides])


def sources_of(manifest: Manifest, split: str) -> dict[str, int]:
    """Source file -> label, as the KEY.json and KEY.cls members of our shards tell it."""
    found = {}
    for shard in manifest.split(split).shards:
        with tarfile.open(shard.path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    facts = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
                    found[facts["source"]] = facts.get("label", -1)
    return found


# --- folder -------------------------------------------------------------------------------------------------------


def test_class_subfolders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": 10 * k + i for k, name in enumerate(("dog", "cat")) for i in range(3)}
    found = folder(make_folder(tmp_path / "in", files), tmp_path / "out", "splits.fractions={}")  # type: ignore[arg-type]
    assert found.classes == ["cat", "dog"] and list(found.splits) == ["train"]
    assert sources_of(found, "train") == {f: int(f.startswith("dog")) for f in files}
    split = found.split("train")
    pixels = {
        i: b
        for batch in eval_batches(split, (12, 16), 6)
        for i, b in zip(batch.index.tolist(), batch.images, strict=True)
    }
    by_source = {s: i for i, s in enumerate(_in_order(found))}
    assert np.array_equal(pixels[by_source["dog/1.png"]].permute(1, 2, 0), np.array(picture(1)))


def _in_order(manifest: Manifest) -> list[str]:
    return list(sources_of(manifest, "train"))


def test_samples_are_mixed_before_they_are_packed(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {f"{c}/{i:02d}.png": i for c in "ab" for i in range(20)}
    found = folder(
        make_folder(tmp_path / "in", files), tmp_path / "out", "splits.fractions={}", "shards.max_samples=10"
    )
    labels = found.split("train").labels.reshape(4, 10)
    assert all(0 < row.sum() < 10 for row in labels), "each shard should hold both classes"
    kept = folder(tmp_path / "in", tmp_path / "kept", "splits.fractions={}", "shards.shuffle=false")
    assert list(sources_of(kept, "train")) == sorted(files)


def test_missing_splits_are_made_by_a_hash_of_the_name(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {f"{i:03d}.png": i % 7 for i in range(200)}
    source = make_folder(tmp_path / "in", files)
    found = folder(source, tmp_path / "out")
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sum(sizes.values()) == 200 and 8 <= sizes["val"] <= 34 and 8 <= sizes["test"] <= 34
    assert any("no val and no test split" in note and "0.1" in note for note in found.notes)
    assert found.classes == [] and set(found.split("val").labels.tolist()) == {-1}
    make_folder(source, {"zzz.png": 3})
    more = folder(source, tmp_path / "more")
    for name in sizes:
        before, after = set(sources_of(found, name)), set(sources_of(more, name))
        assert before <= after, "a new file must not move others from one split to another"
    other = folder(source, tmp_path / "other", "splits.seed=1")
    assert set(sources_of(other, "val")) != set(sources_of(more, "val"))


def test_split_subfolders_are_taken_as_they_are(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {
        f"{s}/{c}/{i}.png": i for s in ("train", "validation", "test") for c in "ab" for i in range(3)
    }
    found = folder(make_folder(tmp_path / "in", files), tmp_path / "out")
    assert {n: len(s) for n, s in found.splits.items()} == {"train": 6, "val": 6, "test": 6} and found.notes == []
    assert sources_of(found, "val") == {f: int("/b/" in f) for f in files if f.startswith("validation")}


def test_the_imagenet_recipe_tests_on_the_official_validation_images(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {
        f"train/n{c}/n{c}_{i}.JPEG": encoded(picture(i), "JPEG") for c in range(2) for i in range(60)
    }
    files |= {f"val/n{c}/{i}.JPEG": encoded(picture(i), "JPEG") for c in range(2) for i in range(4)}
    source = make_folder(tmp_path / "in", files)
    found = build("imagenet", tmp_path / "out", overrides=[f"source.path={source}", "splits.fractions.val=0.2"])
    assert len(found.split("test")) == 8 and all(s.startswith("val/") for s in sources_of(found, "test"))
    carved = sources_of(found, "val")
    assert 0 < len(carved) < 60 and all(s.startswith("train/") for s in carved)
    assert not set(carved) & set(sources_of(found, "train")) and found.classes == ["n0", "n1"]


def test_broken_images_are_left_out_by_name(tmp_path: Path) -> None:
    jpeg = encoded(picture(1, 60, 60), "JPEG")
    files: dict[str, bytes | int] = {
        "good.png": 1, "empty.jpg": b"", "cut.jpg": jpeg[: len(jpeg) // 2], "text.png": b"hello", "cmyk.jpg":
        encoded(picture(2).convert("CMYK"), "JPEG"), "notes.txt": b"x", "anim.gif": b"GIF89a", ".hidden.png": b"x",
        "wrong.png": jpeg,
    }  # fmt: skip
    found = folder(make_folder(tmp_path / "in", files), tmp_path / "out", "splits.fractions={}")
    assert set(sources_of(found, "train")) == {"good.png", "cmyk.jpg", "wrong.png"}
    reasons = {b["source"]: b["reason"] for b in found.bad}
    assert found.bad_count == 3 and set(reasons) == {"empty.jpg", "cut.jpg", "text.png"}
    assert "0 bytes" in reasons["empty.jpg"] and "not a jpg" in reasons["text.png"]
    assert any("1 .gif" in note for note in found.notes)
    split = found.split("train")
    assert sorted(split.read(i)[1] for i in range(3)) == ["jpg", "jpg", "png"], "the content decides, not the name"


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        folder(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"source\.path is empty"):
        build("folder", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in .*empty.*found nothing"):
        folder(tmp_path / "empty", tmp_path / "out")
    make_folder(tmp_path / "texts", {"a.txt": b"x", "b/c.txt": b"y"})
    with pytest.raises(DataError, match=r"found 2 \.txt"):
        folder(tmp_path / "texts", tmp_path / "out")
    make_folder(tmp_path / "broken", {"a.png": b"x", "b.png": b"y"})
    with pytest.raises(DataError, match=r"none of the 2 images .*a\.png|none of the 2 images .*b\.png"):
        folder(tmp_path / "broken", tmp_path / "out", "splits.fractions={}")
    make_folder(tmp_path / "half", {"train/a.png": 1, "test/readme.txt": b""})
    with pytest.raises(DataError, match=r"no images in .*half/test"):
        folder(tmp_path / "half", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_link_to_a_parent_folder_ends(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", {"a/1.png": 1, "a/2.png": 2})
    (source / "a" / "loop").symlink_to(source)
    assert len(folder(source, tmp_path / "out", "splits.fractions={}").split("train")) == 2


@pytest.mark.parametrize(("format", "extension"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp"), ("keep", "png")])
def test_images_are_shrunk_and_rewritten(format: str, extension: str, tmp_path: Path) -> None:
    image = picture(1, 90, 60)
    source = make_folder(tmp_path / "in", {"large.png": encoded(image), "small.png": 5})
    found = folder(source, tmp_path / "out", "splits.fractions={}", "image.resize=30", f"image.format={format}")
    split = found.split("train")
    shapes = {Image.open(io.BytesIO(split.read(i)[0])).size for i in range(2)}
    assert shapes == {(30, 45), (16, 12)} and {split.read(i)[1] for i in range(2)} == {extension}
    assert found.image["largest"] == [45, 30] and found.image["smallest"] == [12, 16]


# --- IDX ----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """60 + 20 random 9 x 7 pictures in MNIST's files, one pair gzipped, one with a dot before idx."""
    root = tmp_path / "mnist"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (80, 9, 7), dtype=np.uint8)
    labels = np.arange(80) % 10
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[:60])))
    (root / "train-labels-idx1-ubyte").write_bytes(idx(labels[:60]))
    (root / "t10k-images.idx3-ubyte").write_bytes(idx(images[60:]))
    (root / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[60:])))
    return root, images


def test_idx_files(mnist: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    root, images = mnist
    found = build("mnist", tmp_path / "out", overrides=[f"source.path={root}", "splits.fractions.val=0.2"])
    assert len(found.split("test")) == 20 and len(found.split("train")) + len(found.split("val")) == 60
    assert found.classes == [str(i) for i in range(10)]
    split = found.split("test")
    order = [int(source.split("/")[1]) for source in sources_of(found, "test")]
    assert split.labels.tolist() == [(60 + i) % 10 for i in order]
    (batch,) = eval_batches(split, (9, 7), 20)
    assert np.array_equal(batch.images.numpy(), np.repeat(images[60:][order][:, None], 3, axis=1))


def test_damaged_idx_files(mnist: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    root, _ = mnist
    labels = root / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for content, message in [
        (whole[:-3], "should hold 60 bytes .* only 57"),
        (whole + b"x", "it holds more"),
        (whole[:6], "truncated inside its header"),
        (b"\x80\x04]q\x00.", "not an IDX file"),
        (b"\0\0\x0d" + whole[3:], "type 0x0d"),
        (struct.pack(">HBBI", 0, 8, 1, 2**32 - 1) + b"x", "should hold 4294967295"),
        (struct.pack(">HBB4I", 0, 8, 4, *[2**32 - 1] * 4), "claims"),
        (idx(np.arange(59) % 10), "60 images but .* 59 labels"),
        (idx(np.zeros((60, 2))), r"labels are \(n,\)"),
        (gzip.compress(whole)[:-9], "damaged or truncated"),
    ]:
        labels.write_bytes(content)
        with pytest.raises(DataError, match=message):
            build("mnist", tmp_path / "out", overrides=[f"source.path={root}"])
    labels.unlink()
    with pytest.raises(DataError, match="no file .*train-labels-idx1-ubyte"):
        build("mnist", tmp_path / "out", overrides=[f"source.path={root}"])


# --- webdataset ---------------------------------------------------------------------------------------------------


def tars(pattern: str, out: Path, *overrides: str) -> Manifest:
    return build("webdataset", out, overrides=[f"source.shards={pattern}", *overrides])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "patterns",
    [["part-*.tar"], ["part-{000..002}.tar"], ["part-00[0-2].tar"], ["part-000.tar", "part-00{1,2}.tar", "part-*.tar"]],
)
@pytest.mark.parametrize("copied", [False, True])
def test_patterns(patterns: list[str], copied: bool, tmp_path: Path) -> None:
    write_tars(tmp_path / "in", (2, 3, 1))
    listed = json.dumps([f"{tmp_path}/in/{p}" for p in patterns])
    found = tars(listed, tmp_path / "out", "splits.fractions={}", f"source.copy={copied}", "shards.shuffle=false")
    split = found.split("train")
    assert split.labels.tolist() == list(range(6)) and found.classes == [str(i) for i in range(6)]
    (batch,) = eval_batches(split, (12, 16), 6)
    assert all(np.array_equal(batch.images[i].permute(1, 2, 0), np.array(picture(i))) for i in range(6))
    inside = all(s.path.is_relative_to(tmp_path / "out") for s in split.shards)
    assert inside == copied


def test_splits_by_pattern_and_by_hash_of_the_original(tmp_path: Path) -> None:
    write_tars(tmp_path / "a", (30, 30))
    write_tars(tmp_path / "b", (5,))
    both = f'{{train: "{tmp_path}/a/*.tar", test: "{tmp_path}/b/*.tar"}}'
    for copied in (False, True):
        found = tars(
            both,
            tmp_path / f"out{copied}",
            "splits.fractions={val: 0.4}",
            "source.original=json.source",
            f"source.copy={copied}",
        )
        assert len(found.split("test")) == 5 and len(found.split("train")) + len(found.split("val")) == 60
        train, val = (set(found.split(s).originals.tolist()) for s in ("train", "val"))
        assert train and val and not train & val, "two samples of one original must stay together"
        assert len(train) + len(val) == 30
        numbers = np.concatenate([found.split(s).labels for s in ("train", "val")])
        assert sorted(numbers.tolist()) == list(range(60))


def test_fields(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(4):
            add(tar, f"dir.v1/s{i}.small.png", encoded(picture(i)))
            add(tar, f"dir.v1/s{i}.big.png", encoded(picture(i + 10)))
            add(tar, f"dir.v1/s{i}.json", json.dumps({"kind": {"name": ["cat", "dog"][i % 2]}, "x": i / 4}).encode())
    found = tars(
        f"{tmp_path}/x.tar", tmp_path / "out", "splits.fractions={}", "source.image=big.png",
        "source.label=json.kind.name", "source.classes=[cat, dog]", "source.targets={where: json.x}",
    )  # fmt: skip
    split = found.split("train")
    assert split.labels.tolist() == [0, 1, 0, 1] and found.classes == ["cat", "dog"]
    assert split.targets["where"].tolist() == [0, 0.25, 0.5, 0.75] and split.key(2) == "dir.v1/s2"
    (batch,) = eval_batches(split, (12, 16), 4)
    assert np.array_equal(batch.images[1].permute(1, 2, 0), np.array(picture(11)))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "exploded"),))  # type: ignore[return-value]

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.png", encoded(picture(1)))
        add(tar, "a.pyd", pickle.dumps(Bomb()))
        add(tar, "b.pkl", pickle.dumps(Bomb()))
        add(tar, "c.png", pickle.dumps(Bomb()))
    found = tars(f"{tmp_path}/x.tar", tmp_path / "out", "splits.fractions={}", "source.verify=true")
    assert len(found.split("train")) == 1 and found.split("train").key(0) == "a"
    assert {b["source"] for b in found.bad} == {"x.tar/b", "x.tar/c"} and not (tmp_path / "exploded").exists()
    for change in ("source.label=pkl", "source.image=pyd", "source.label=npy"):
        with pytest.raises(ConfigError, match=r"never code|can carry code"):
            tars(f"{tmp_path}/x.tar", tmp_path / "out2", change)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("pipe:cat x.tar", "no pipes and no chains"),
        ("ftp://example.org/x.tar", "no pipes and no chains"),
        ("a.tar::b.tar", "no pipes and no chains"),
        ("http://example.org/x-*.tar", "does not list its files"),
        ("", "source.shards is empty"),
        ("/x/{000..}}.tar", "source.shards"),
        ("/x/{0..99999999}.tar", "more than 1000000"),
    ],
)
def test_refused_patterns(shards: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        tars(json.dumps(shards), tmp_path / "out")


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", (1, 1))
    with pytest.raises(DataError, match=r"there is no .*part-002\.tar"):
        tars(f"{tmp_path}/in/part-{{000..003}}.tar", tmp_path / "out")


@pytest.mark.parametrize(("kind", "name"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_compressed_tars_are_refused_with_advice(kind: str, name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{kind}") as tar:  # type: ignore[call-overload]
        add(tar, "a.png", encoded(picture(1)))
    with pytest.raises(DataError, match=f"compressed with {name}.*unpack it once with"):
        tars(f"{tmp_path}/x.tar", tmp_path / "out")


def test_zstd_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(DataError, match="compressed with zstd"):
        tars(f"{tmp_path}/x.tar", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10), b"\xff" * 2000, encoded(picture(0))])
def test_what_is_no_tar(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError):
        tars(f"{tmp_path}/x.tar", tmp_path / "out")


@pytest.mark.parametrize("copied", [False, True])
def test_a_truncated_tar_keeps_what_is_whole(copied: bool, tmp_path: Path) -> None:
    write_tars(tmp_path / "in", (10, 4))
    first = tmp_path / "in" / "part-000.tar"
    whole = tars(f"{tmp_path}/in/*.tar", tmp_path / "whole", "splits.fractions={}").split("train")
    first.write_bytes(first.read_bytes()[: int(whole.index[6, 1]) + 50])  # in the middle of the seventh picture
    found = tars(
        f"{tmp_path}/in/*.tar", tmp_path / "out", "splits.fractions={}", f"source.copy={copied}", "shards.shuffle=false"
    )
    assert found.split("train").labels.tolist() == [*range(6), *range(10, 14)]
    assert found.bad_count == 1 and "cut off" in found.bad[0]["reason"] and "s00006" in found.bad[0]["reason"]


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, label in enumerate([b"1", b"cat", b"7", b"-1", b"\xff\xfe", b"2.5"]):
            add(tar, f"{i}.png", encoded(picture(i)))
            add(tar, f"{i}.cls", label)
        add(tar, "6.png", encoded(picture(6)))
    found = tars(f"{tmp_path}/x.tar", tmp_path / "out", "splits.fractions={}", "source.classes=[a, b]")
    assert {found.split("train").key(i): int(found.split("train").labels[i]) for i in range(3)} == {
        "0": 1,
        "3": -1,
        "6": -1,
    }
    reasons = {b["source"]: b["reason"] for b in found.bad}
    assert "not a number; list the names under source.classes" in reasons["x.tar/1"]
    assert "there are 2 classes" in reasons["x.tar/2"] and "UTF-8" in reasons["x.tar/4"]
    strict = tars(f"{tmp_path}/x.tar", tmp_path / "strict", "splits.fractions={}", "source.label=cls")
    assert any("no .cls file" in b["reason"] for b in strict.bad)


def test_relative_tars_may_move_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path / "home" / "in", (3,))
    monkeypatch.chdir(tmp_path / "home")
    tars("in/*.tar", Path("out"), "splits.fractions={}")
    (tmp_path / "home").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert Manifest.open(tmp_path / "moved" / "out").split("train").read(2)[1] == "png"
