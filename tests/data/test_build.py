"""Building: equal bytes however it was run, interrupted builds go on, broken images are left out by name."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from jepa.data import Manifest, eval_batches
from jepa.data.build import build
from jepa.data.journal import Journal
from jepa.data.sources import digits
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture

DIGITS = ["source.samples={train: 70, val: 10, test: 10}", "shards.max_samples=15"]


def contents(folder: Path) -> dict[str, str]:
    """Every file and the hash of its bytes."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    build("digits", folder, overrides=DIGITS)
    return contents(folder)


def test_bytes_do_not_depend_on_workers(undisturbed: dict[str, str], tmp_path: Path) -> None:
    build("digits", tmp_path / "out", overrides=DIGITS, workers=2)
    assert contents(tmp_path / "out") == undisturbed


def test_a_killed_build_goes_on_and_gives_the_same_bytes(undisturbed: dict[str, str], tmp_path: Path) -> None:
    """SIGKILL after the first finished shards, several times over, until nothing is left to kill."""
    out = tmp_path / "out"
    program = f"from jepa.data.build import build; build('digits', {str(out)!r}, overrides={DIGITS!r})"
    kills = 0
    while not (out / "manifest.json").exists():
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        before, deadline = len(list(out.rglob("*.tar"))), time.monotonic() + 250
        while process.poll() is None and len(list(out.rglob("*.tar"))) < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if kills == 1 and not (out / "manifest.json").exists():
            with pytest.raises(DataError, match="unfinished build"):
                Manifest.open(out)
    assert kills >= 1, "the build was never interrupted, so this test has shown nothing"
    assert contents(out) == undisturbed


def test_a_lost_or_cut_shard_is_made_again(undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _interrupt_after(out, shards=3)
    first = sorted((out / "train").glob("*.tar"))[0]
    first.write_bytes(first.read_bytes()[:1000])
    build("digits", out, overrides=DIGITS)
    assert contents(out) == undisturbed


def _interrupt_after(out: Path, shards: int, recipe: str = "digits", overrides: list[str] = DIGITS) -> None:
    """Stop a build by an exception, as Ctrl-C does, after some shards."""

    class Stop(Exception):
        pass

    add, done = Journal.add, []

    def counted(self: Journal, *arguments: object) -> None:
        add(self, *arguments)  # type: ignore[arg-type]
        done.append(1)
        if len(done) == shards:
            raise Stop

    Journal.add = counted  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(Stop):
            build(recipe, out, overrides=overrides)
    finally:
        Journal.add = add  # type: ignore[method-assign]


def test_a_changed_recipe_names_what_changed(digits: Path, tmp_path: Path) -> None:
    samples = "source.samples={train: 120, val: 30, test: 40}"
    assert build("digits", digits, overrides=[samples, "shards.max_samples=50"]).hash == Manifest.open(digits).hash
    with pytest.raises(DataError, match=r"already holds.*source\.clutter: 4 -> 2") as error:
        build("digits", digits, overrides=[samples, "shards.max_samples=50", "source.clutter=2"])
    assert "max_samples" not in str(error.value)
    _interrupt_after(tmp_path / "out", shards=1)
    with pytest.raises(DataError, match=r"unfinished build of another recipe.*source\.seed: 0 -> 1"):
        build("digits", tmp_path / "out", overrides=[*DIGITS, "source.seed=1"])


def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        (images / f"{i}.png").write_bytes(encoded(picture(i)))
    overrides = [f"source.path={images}", "splits.fractions={}", "shards.max_samples=1"]
    out = tmp_path / "out"
    _interrupt_after(out, 1, "folder", overrides)
    (images / "new.png").write_bytes(encoded(picture(9)))
    with pytest.raises(DataError, match="source has changed"):
        build("folder", out, overrides=overrides)


def test_two_builds_in_one_folder(tmp_path: Path) -> None:
    _interrupt_after(tmp_path / "out", shards=1)
    header = {"recipe": {}, "source": ""}
    held = Journal(tmp_path / "other", header)
    with pytest.raises(DataError, match="another build is writing"):
        Journal(tmp_path / "other", header)
    held.close(finished=False)
    Journal(tmp_path / "other", header).close(finished=True)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        build("digits", tmp_path, overrides=DIGITS)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(DataError, match="is a file"):
        build("digits", tmp_path / "thesis.tex", overrides=DIGITS)


def test_the_webdataset_library_reads_our_shards(digits: Path) -> None:
    split = Manifest.open(digits).split("train")
    shards = [str(s.path) for s in split.shards]
    dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8")
    samples = list(dataset)
    assert [s["__key__"] for s in samples] == [split.key(i) for i in range(len(split))]
    assert [s["cls"] for s in samples] == split.labels.tolist()
    assert np.allclose([s["json"]["x"] for s in samples], split.targets["x"])
    ours = np.concatenate([b.images.permute(0, 2, 3, 1).numpy() for b in eval_batches(split, (40, 40), 64)])
    theirs = np.stack([s["jpg"] for s in samples])
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_digits_of_different_splits_share_no_original(digits: Path) -> None:
    manifest = Manifest.open(digits)
    used = {name: set(split.originals.tolist()) for name, split in manifest.splits.items()}
    assert not used["train"] & used["val"] and not used["train"] & used["test"] and not used["val"] & used["test"]
    assert manifest.classes == [str(c) for c in range(10)]
    for split in manifest.splits.values():
        assert {"x", "y", "size"} == set(split.targets)
        assert all(((values > 0) & (values < 1)).all() for values in split.targets.values())


def test_clutter_comes_from_the_splits_own_originals() -> None:
    """Blank out every original of a split: nothing but background is left, so nothing else was painted."""
    config = digits.Config(gradient=0.0, clutter=6)
    maker = digits.Maker(config)
    ink, classes = digits.load_originals()
    test = digits.split_originals(config)["test"]
    painted = sum(np.ptp(maker(("test", i)).image, axis=(0, 1)).max() > 0 for i in range(20))  # type: ignore[arg-type]
    blank = ink.copy()
    blank[test] = 0
    maker.__dict__["_originals"] = (blank, classes)
    plain = [np.ptp(maker(("test", i)).image, axis=(0, 1)).max() for i in range(20)]  # type: ignore[arg-type]
    assert painted == 20 and max(plain) == 0


def test_the_digit_is_where_the_targets_say() -> None:
    """Without clutter and gradient, what differs from the background lies in the box of the targets."""
    maker = digits.Maker(digits.Config(clutter=0, gradient=0.0))
    for number in range(30):
        sample = maker(("train", number))
        assert isinstance(sample.image, np.ndarray)
        inked = (sample.image != sample.image[0, 0]).any(-1)
        if sample.image[0, 0].tolist() != sample.image[-1, -1].tolist():
            continue  # the digit covers a corner
        rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
        x, y, size = (v * 40 for v in sample.targets)
        assert y - size / 2 <= rows[0] and rows[-1] < y + size / 2
        assert x - size / 2 <= columns[0] and columns[-1] < x + size / 2
        assert 16 <= size <= 24 and len(rows) > size / 2


@pytest.mark.parametrize("ink", ["light", "dark", "both"])
def test_the_digit_contrasts_with_its_background(ink: str) -> None:
    maker = digits.Maker(digits.Config(clutter=0, gradient=0.0, ink=ink))  # type: ignore[arg-type]
    signs = set()
    for number in range(60):
        image = maker(("train", number)).image
        assert isinstance(image, np.ndarray)
        luma = image @ np.array([0.299, 0.587, 0.114])
        background = np.median(luma)
        far = luma.flat[np.abs(luma - background).argmax()] - background
        assert abs(far) > 0.3 * 255
        signs.add(far > 0)
    assert signs == {"light": {True}, "dark": {False}, "both": {True, False}}[ink]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("source.digit=[30, 50]", "largest <= size=40"),
        ("source.cluter=3", "Did you mean 'clutter'"),
        ("source.kind=digitz", "allowed: .*digits, emoji, folder"),
        ("source.samples={extra: 5}", "same splits"),
        ("source.originals={train: 0.9, val: 0.2, test: 0.1}", "at most 1"),
        ("source.contrast=0.9", "contrast: allowed are 0 to 0.5"),
        ("image.format=gif", "image.format: got 'gif'"),
        ("image.quality=0", "quality: allowed are 1 to 100"),
        ("shards.max_samples=0", "at least 1"),
        ("splits.fractions={val: 1.5}", "between 0 and 1"),
        ("splits.fractions={train: 0.5}", "train is what the others leave"),
        ("name=../x", "dataset name '../x'"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build("digits", tmp_path / "out", overrides=[change])
    assert not (tmp_path / "out").exists()
