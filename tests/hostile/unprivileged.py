"""Run by test_places.py in a process of its own: several verbs, as the user and in the folder that it was started in.

Arguments: a folder to write to, and one that is read-only. What each verb said is printed as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import jepa
from jepa import cli


def main(work: Path, locked: Path) -> None:
    """Every verb that writes, where it may, and then where it may not."""
    done = []
    small = ("train.batch=4", "data.image_size=24", "data.workers=0", f"data.path={work / 'data'}")
    probe = ("--suite", "digits", "probes.linear.steps=2", "bootstrap.resamples=100", "--device", "cpu")
    digits = ("digits", "source.size=24", "source.samples={train: 32, val: 8, test: 8}", "--out")
    for words in (
        ["data", "build", *digits, work / "data"],
        ["train", "demo", "--debug", "--out", work / "run", *small],
        ["train", work / "run", "--extend", "steps=3"],
        ["probe", work / "run", *probe],
        ["report", work / "run"],
        ["extract", work / "run", work / "data", "--out", work / "features"],
        ["export", work / "run", "--format", "safetensors"],
        ["submit", "train", "demo", "--debug", *small, "--cluster", "local", "--dry-run"],
        ["inspect", locked / "run"],
        ["probe", locked / "run", *probe, f"dataset={work / 'data'}"],
        ["data", "build", *digits, locked / "more"],
        ["data", "show", locked / "data"],
        ["train", "demo", "--debug", "--out", locked / "run3", *small],
        ["train", locked / "run", "--resume", f"data.path={locked / 'data'}"],
        ["report", locked / "run"],
        ["extract", locked / "run", locked / "data", "--out", locked / "features"],
        ["export", locked / "run", "--format", "safetensors"],
        ["extract", locked / "run", locked / "data", "--out", work / "others"],
    ):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(word) for word in words])
        done.append({"words": [str(word) for word in words], "code": code, "err": err.getvalue()})
    print(json.dumps({"package": jepa.__file__, "user": os.getuid(), "done": done}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
