"""The contact sheet and the counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.show import show
from jepa.errors import DataError
from tests.data.conftest import encoded, picture, write_tars


def test_counts_and_picture(digits: Path, tmp_path: Path) -> None:
    summary = show(digits, tmp_path / "sheet.png", count=24)
    labels = Manifest.open(digits).split("val").labels
    assert summary.values["splits"]["val"]["classes"] == {str(c): int((labels == c).sum()) for c in np.unique(labels)}
    assert "120 images in 3 shards" in summary.text and "40x40 to 40x40" in summary.text
    sheet = np.asarray(Image.open(summary.picture))
    assert sheet.shape == (2 * (96 + 14 + 4) + 4, 12 * 100 + 4, 3) and sheet.std() > 20
    assert len(summary.text.splitlines()) < 20


def test_unlabelled_odd_and_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wide.png").write_bytes(encoded(picture(1, 2, 300)))
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    build("folder", tmp_path / "out", overrides=[f"source.path={tmp_path}/in", "splits.fractions={}"])
    summary = show(tmp_path / "out")
    assert summary.picture == tmp_path / "out" / "contact-sheet.png" and summary.picture.is_file()
    assert "left out 1 images" in summary.text and "bad.png" in summary.text and "no label 1" in summary.text


def test_a_sample_that_broke_later_is_shown_as_such(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", (3,))
    found = build(
        "webdataset", tmp_path / "out", overrides=[f"source.shards={tmp_path}/in/*.tar", "splits.fractions={}"]
    )
    shard, offset, _, _ = found.split("train").index[1].tolist()
    with found.split("train").shards[shard].path.open("r+b") as file:
        file.seek(offset)
        file.write(b"junk")
    assert "unreadable s00001" in show(tmp_path / "out").text


def test_wrong_arguments(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        show(digits, tmp_path / "x.png", split="dev")
    with pytest.raises(DataError, match="at least 1"):
        show(digits, tmp_path / "x.png", count=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        show(digits, tmp_path / "file" / "x.png")
    with pytest.raises(DataError, match="is not a folder"):
        show(tmp_path / "nowhere")
