"""Submission: what is checked, what a sweep is, what the job is given. With a real SLURM where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jepa import cli, options
from jepa.errors import ConfigError
from jepa.slurm import book, snapshot, sweep
from tests import tiny
from tests.slurm.conftest import Cluster, wait_for


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny.yaml, which is the current one."""
    values = tiny.VALUES | {"data": tiny.VALUES["data"] | {"path": str(tiny_data)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*words: str) -> int:
    return cli.main(["submit", *words, "--cluster", "local"])


# --- sweeps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-3", ["1e-3"]),
        ("1e-3,3e-4", ["1e-3", "3e-4"]),
        ("[0.9,0.95]", ["[0.9,0.95]"]),
        ("[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("{steps: 10, a: [1,2]},{steps: 20}", ["{steps: 10, a: [1,2]}", "{steps: 20}"]),
        ('"a,b"', ['"a,b"']),
        ("it's,that's", ["it's", "that's"]),
        ("", [""]),
    ],
)
def test_only_outer_commas_separate(text: str, parts: list[str]) -> None:
    assert sweep.split(text) == parts


def test_a_grid_names_its_runs() -> None:
    found = sweep.grid(["train.batch=8", "optim.lr=1e-3,3e-4"], seeds=2)
    assert [point.name for point in found] == ["lr=1e-3_seed=0", "lr=1e-3_seed=1", "lr=3e-4_seed=0", "lr=3e-4_seed=1"]
    assert found[1].overrides == ("train.batch=8", "optim.lr=1e-3", "seed=1")
    both = sweep.grid(["a.depth=1,2", "b.depth=3,4"])
    assert both[0].name == "a.depth=1_b.depth=3", "a name says which key it is of"
    odd = sweep.grid(["data.path=a/b,a_b,a b"])
    assert len({point.name for point in odd}) == 3 and all("/" not in point.name for point in odd)
    assert [point.name for point in sweep.grid(["optim.betas=[0.9,0.95]"])] == [""]


@pytest.mark.parametrize(
    ("overrides", "seeds", "message"),
    [
        (["a=1,,2"], None, "a value of the list is empty"),
        (["a=1,1"], None, "a value is given twice"),
        (["a=[1,2"], None, "] is missing"),
        (["seed=1"], 3, "give only one of them"),
        (["a=1,2", "a=3"], None, "a is a list and is given once more"),
        ([], 0, "at least 1"),
        ([f"{k}={','.join(map(str, range(11)))}" for k in "abc"], None, "make 1331 runs"),
    ],
)
def test_lists_that_make_no_sense(overrides: list[str], seeds: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep.grid(overrides, seeds)
    assert message in str(error.value)


# --- without SLURM ----------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_script_and_writes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit("train", "tiny.yaml", "--dry-run", "--set", "time=2:00:00", "--set", "nice=3", "train.keep=5") == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash")
    for line in ("--time=120", "--nice=3", "--partition=main", "--signal=USR2@60", "--requeue", "--job-name=tiny"):
        assert f"#SBATCH {line}\n" in script
    assert f"PYTHONPATH={place}/runs/tiny/slurm/code/" in script and "PYTHONSAFEPATH=1" in script
    assert "--kill-on-bad-exit=1" in script and "submitit" in script
    assert sorted(path.name for path in place.iterdir()) == ["tiny.yaml"], "nothing is written"
    assert submit("train", "tiny.yaml", "--dry-run", "optim.lr=1e-3,3e-4", "--seeds", "5", "--parallel", "3") == 0
    assert "#SBATCH --array=0-9%3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tiny.yaml", "optim.lrr=1"], "Did you mean 'lr'?"),
        (["train", "tiny.yaml", "data.path="], "data.path"),
        (["train", "tiny.yaml", "--set", "nodes=3"], "train.batch"),  # 8 samples on 3 processes
        (["train", "tiny.yaml", "train.precision=fp16"], "needs a GPU"),
        (["train", "tiny.yaml", "method.encoder.depth=1,two"], "depth=two: "),
        (["train", "tiny.yaml", "--resume"], "there is no run in runs/tiny to go on with"),
        (["train", "tiny.yaml", "--resume", "--init-from", "x"], "give only one of them"),
        (["train", "tiny.yaml", "--set", "nodse=3"], "Did you mean 'nodes'?"),
        (["trian", "tiny.yaml"], "Did you mean 'train'?"),
        (["data", "show", "x"], "no such verb to submit"),
        (["data", "build", "digits", "--out", "tiny.yaml"], "is a file"),
        (["data", "build", "digits", "--out", "x", "source.colour=1"], "colour"),
        (["probe", "no-such-run", "--suite", "digits"], "no such run or checkpoint"),
        (["probe", "no-such-run", "--suite", "digit"], "Did you mean 'digits'?"),
        (["probe", "no-such-run", "--suite", "digits", "--seeds", "3"], "--seeds is for train"),
        (["plan", "no-such-run", "--suite", "tworoom"], "no such run or checkpoint"),
        (["rollout", "no-such-run", "windows.horizn=3"], "Did you mean 'horizon'?"),
        (["extract", "no-such-run", "x", "--out", "y", "--layers", "a"], "give whole numbers"),
    ],
)
def test_everything_is_checked_before_anything_is_written(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(*words, "--dry-run") == 2
    told = capsys.readouterr()
    assert message in told.err and told.out == ""
    assert sorted(path.name for path in place.iterdir()) == ["tiny.yaml"]


def test_without_a_profile_or_without_slurm_it_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", "train", "tiny.yaml"]) == 2
    assert "a100, gpu, h100, h200, local" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit("train", "tiny.yaml") == 2
    assert "there is no SLURM on this machine" in capsys.readouterr().err
    assert submit("train", "tiny.yaml", "--no-such-option") == 2
    assert "--no-such-option" in capsys.readouterr().err, "options are those of the verb"


def test_a_run_folder_stands_for_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine\n")
    assert options.run_settings(str(tmp_path), [], None, False, [])[1] == tmp_path


def test_code_is_copied_once_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a method of the user's own; what is edited later does not matter."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mymethod.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    methods = ("mymethod:Mine", "ijepa")
    code = snapshot.take(tmp_path / "code", methods)
    before = (code / snapshot.FACTS).stat().st_mtime_ns
    assert snapshot.take(tmp_path / "code", methods) == code == snapshot.place(tmp_path / "code", methods)
    assert (code / snapshot.FACTS).stat().st_mtime_ns == before and len(list((tmp_path / "code").iterdir())) == 1
    (tmp_path / "own" / "mymethod.py").write_text("VALUE = 2\n")
    assert snapshot.take(tmp_path / "code", methods) != code
    program = (
        "import jepa, mymethod; from jepa import resources, environment as e;"
        "print(jepa.__file__, mymethod.VALUE, resources.find('slurm', 'h100'), e.git() and e.git()['commit'])"
    )
    env = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    where, value, found, commit = done.stdout.split()
    assert Path(where).is_relative_to(code) and value == "1" and Path(found).is_relative_to(code)
    assert commit == str((json.loads((code / snapshot.FACTS).read_text())["git"] or {}).get("commit"))


# --- with SLURM -------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The private cluster in the environment of this process."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return cluster


def test_a_job_runs_what_was_submitted(slurm: Cluster, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the configuration is another one by the time it starts; and a probe that waited for it finds its run."""
    assert submit("train", "tiny.yaml", "--set", "begin=now+3", "train.duration={steps: 6}") == 0
    told = capsys.readouterr().out
    (entry,) = book.read(place / "runs" / "tiny")
    assert f"job {entry.job}: " in told and "jepa jobs logs runs/tiny --follow" in told
    (place / "tiny.yaml").write_text("nonsense: 1\n")
    suite = ["probe", "runs/tiny", "--suite", "digits", f"dataset={_data(entry)}"]
    assert submit(*suite, "--set", f"dependency=afterok:{entry.job}") == 0
    assert "has no checkpoint yet: the job waits for afterok" in capsys.readouterr().err
    assert submit("train", str(entry.values["argv"][1])) == 2
    assert f"job {entry.job} (" in capsys.readouterr().err, "the job that is there is named"
    slurm.start_now(entry.job)
    slurm.wait_for_state(entry.job, "COMPLETED", "FAILED", seconds=120)
    log = entry.log(errors=True).read_text()
    assert slurm.state(entry.job) == "COMPLETED", log
    assert "step 6/6" in log
    code = Path(entry.values["root"]) / "slurm" / "code" / entry.values["code"]
    assert (code / "jepa" / "train.py").is_file()
    facts = json.loads((place / "runs/tiny/environment.json").read_text())
    assert str(code) in json.dumps(facts) or facts["git"] == json.loads((code / "code.json").read_text())["git"]
    probe = book.read(place / "runs" / "tiny")[-1]
    slurm.wait_for_state(probe.job, "COMPLETED", "FAILED", seconds=120)
    assert (place / "runs/tiny/probes/digits.json").is_file(), probe.log(errors=True).read_text()


def _data(entry: book.Entry) -> str:
    return str(yaml.safe_load(Path(entry.values["argv"][1]).read_text())["data"]["path"])


def test_a_refusal_leaves_nothing(slurm: Cluster, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, said in (("memory=900G", "not available"), ("partition=nope", "invalid partition")):
        assert submit("train", "tiny.yaml", "--set", setting) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["tiny.yaml"]
    shutil.copytree(place, place / "runs/tiny/kept", ignore=shutil.ignore_patterns("runs"))
    assert submit("train", "tiny.yaml", "--set", "memory=900G") == 2
    assert [path.name for path in (place / "runs/tiny").iterdir()] == ["kept"], "what was there stays"
    wait_for(lambda: not slurm.run(["squeue", "-h"]).stdout.strip(), 10)
