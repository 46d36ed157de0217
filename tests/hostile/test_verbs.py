"""Every verb with nothing, with nonsense, with odd names, from another folder; a verb without a row is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import verbs
from tests.hostile.verbs import PROBE, ROLLOUT, Jepa, Lab

Words = list[str | Path]
BENCHES = tuple(verb for verb in verbs.found() if verb.startswith("bench "))
# Verbs that have a meaning without a word behind them.
NOTHING = {"demo": "the whole job", "doctor": "this machine", "watch": "runs/", "jobs": "all jobs"} | dict.fromkeys(
    BENCHES, "the usual settings"
)
# Verbs that print no table and no result.
WITHOUT_JSON = {"jobs logs": "prints the text of a log"}
KINDS = ("missing", "file", "empty", "junk")
# What is no mistake after all: (verb, kind).
MEANT = {("watch", "junk"): "damaged lines are left out, and a run without any is shown as such"}


def places(lab: Lab, bad: Path, out: Path) -> dict[str, list[Words]]:
    """By verb, its words with `bad` wherever something is read from a place."""
    data = f"data.path={lab.data}"
    dry = ("--cluster", "local", "--dry-run")
    layouts = ("ijepa", "vjepa", "vjepa2", "vjepa21", "vjepa2-ac", "dinowm", "transformers", "timm")
    return {
        "data build": [[bad, "-o", out], ["folder", "-o", out, f"source.path={bad}"],
                       ["webdataset", "-o", out, f"source.shards={bad}/*.tar"],
                       ["digits", "-o", out, f"clean={bad}", *verbs.SMALL]],
        "data show": [[bad]],
        "data check": [[bad, "-o", out]],
        "train": [[bad, "-o", out], [lab.config, "-o", out, f"data.path={bad}"],
                  [lab.config, "-o", bad, "--resume", data], [lab.config, "-o", out, "--init-from", bad, data]],
        "watch": [[bad, "--once"], [bad, "--json"]],
        "probe": [[bad, *PROBE], [lab.run, "--suite", bad], [lab.run, *PROBE, f"dataset={bad}"]],
        "rollout": [[bad], [lab.world, "--suite", bad], [lab.world, f"dataset={bad}"]],
        "plan": [[bad, "--suite", lab.suite], [lab.planner, "--suite", bad],
                 [lab.planner, "--suite", lab.suite, "--beside", bad]],
        "extract": [[bad, lab.data, "-o", out], [lab.run, bad, "-o", out]],
        "report": [[bad], [bad, "--live"], [lab.run, bad]],
        "show": [[bad], [lab.run, f"data={bad}"]],
        "inspect": [[bad]],
        "import": [[bad, "--from", layout, "--to", out] for layout in layouts],
        "export": [[bad, "--format", "safetensors", "-o", out]],
        "submit": [["train", bad, *dry], ["probe", bad, "--suite", "digits", *dry],
                   ["train", lab.config, data, "--cluster", bad, "--dry-run"]],
        "jobs logs": [[bad]], "jobs cancel": [[bad]], "jobs requeue": [[bad]],
    }  # fmt: skip


def targets(lab: Lab, bad: Path) -> dict[str, Words]:
    """By verb, its words with `bad` where a folder of its own is written; one with other things in it is refused."""
    return {
        "data build": ["digits", "-o", bad, *verbs.SMALL],
        "train": [lab.config, "-o", bad, f"data.path={lab.data}"],
        "extract": [lab.run, lab.data, "-o", bad],
        "import": [lab.run / "exports" / "timm", "--from", "timm", "--to", bad],
        "export": [lab.run, "--format", "safetensors", "-o", bad],
    }


def settings(lab: Lab, out: Path) -> dict[str, tuple[Words, str]]:
    """By verb that takes settings, words that it would work with, and the name of a number among its settings."""
    data = f"data.path={lab.data}"
    benches: dict[str, tuple[Words, str]] = {verb: ([], "rounds") for verb in BENCHES}
    own = {"memory": "steps", "scaling": "node", "interrupt": "interruptions", "extract": "images", "plan": "frames",
           "decode": "gop"}  # fmt: skip
    return benches | {f"bench {name}": ([], key) for name, key in own.items()} | {
        "bench all": ([], "only"),
        "data build": (["digits", "-o", out], "shards.max_samples"),
        "data check": ([lab.data, "-o", out], "limit"),
        "train": ([lab.config, "-o", out, data], "train.batch"),
        "probe": ([lab.run, *PROBE], "bootstrap.resamples"),
        "rollout": ([lab.world], "windows.horizon"),
        "plan": ([lab.planner, "--suite", lab.suite], "budget"),
        "show": ([lab.run], "samples"),
        "import": ([lab.run / "exports" / "timm", "--from", "timm", "--to", out], "data.workers"),
        "submit": (["train", lab.config, data, "--cluster", "local", "--dry-run"], "train.batch"),
    }  # fmt: skip


def working(lab: Lab, out: Path) -> Iterator[Words]:
    """Words that every verb works with, each verb with --json."""
    small = f"data.path={lab.data}"
    yield ["data", "build", "digits", "-o", out / "neue Daten", *verbs.SMALL]
    yield ["data", "show", lab.data, "--picture", out / "Bögen.png"]
    yield ["data", "check", lab.data, "-o", out / "geprüft", "workers=1"]
    yield ["train", lab.config, "-o", out / "Lauf zwei", small, "train.duration.steps=2", "optim.warmup.steps=1"]
    yield ["watch", lab.root]
    yield ["probe", lab.run, *PROBE, "name=prüfung"]
    yield ["probe", lab.features, *PROBE]
    yield ["rollout", lab.world, *ROLLOUT, "name=weit"]
    yield ["plan", lab.planner, "--suite", lab.suite, "episodes=2", "--device", "cpu"]
    yield ["extract", lab.run, lab.data, "-o", out / "Merkmale"]
    yield ["report", lab.run, "-o", out / "Bericht ß.html"]
    yield ["show", lab.run, "-o", out / "Bilder", "--what", "pca"]
    yield ["inspect", lab.run]
    yield ["import", lab.run / "exports" / "timm", "--from", "timm", "--to", out / "geholt"]
    yield ["export", lab.run, "--format", "safetensors", "-o", out / "fort"]
    yield ["submit", "train", lab.config, small, "-o", out / "später", "--cluster", "local", "--dry-run"]
    yield ["bench", "masks", "rounds=2", "batch=4"]


# Not run here with --json, and where they are.
ELSEWHERE = {
    "demo": "tests/test_demo.py", "doctor": "tests/test_doctor.py", "jobs": "tests/slurm/test_jobs.py",
    "jobs cancel": "tests/slurm/test_jobs.py", "jobs requeue": "tests/slurm/test_jobs.py",
    **dict.fromkeys(BENCHES, "tests/bench"),
}  # fmt: skip


def bad_place(kind: str, folder: Path) -> Path:
    """Something of a kind that no verb can use."""
    bad = folder / f"kein {kind} ✗"
    if kind == "file":
        bad.write_bytes(b"\x00\x01 nothing that anybody reads\n")
    elif kind != "missing":
        bad.mkdir()
    return verbs.junk(bad) if kind == "junk" else bad


def test_every_verb_has_its_rows(lab: Lab, tmp_path: Path) -> None:
    known = set(verbs.found())
    covered = set(places(lab, tmp_path, tmp_path)) | set(NOTHING)
    assert covered == known, "a new verb belongs into `places`, or into NOTHING when it needs no word"
    takes = {v for v, c in verbs.found().items() if any(p.name == "overrides" for p in c.params)} | {"submit"}
    assert set(settings(lab, tmp_path)) == takes, "a verb that takes KEY=VALUE belongs into `settings`"
    run = {next(v for v in (" ".join(map(str, w[:2])), str(w[0])) if v in known) for w in working(lab, tmp_path)}
    assert run | set(ELSEWHERE) | set(WITHOUT_JSON) == known, "a new verb belongs into `working`"


def test_every_verb_has_json_or_a_reason() -> None:
    without = {verb for verb, c in verbs.found().items() if not any("--json" in p.opts for p in c.params)}
    assert without == set(WITHOUT_JSON)


def test_nothing_is_wrong_usage(jepa: Jepa, elsewhere: Path) -> None:
    for verb, command in verbs.found().items():
        done = jepa(*verb.split(), "--no-such-option")
        assert done.code == 2 and "no-such-option" in done.err and "Traceback" not in done.err, (verb, done.said)
        if verb in NOTHING:
            assert not [p.name for p in command.params if p.required], verb
            continue
        done = jepa(*verb.split())
        assert done.code == 2 and "Missing" in done.err and "Traceback" not in done.err, (verb, done.said)
    for words in (["watch"], ["jobs", "--in", "runs"]):
        done = jepa(*words)
        assert done.code == 2 and "runs" in done.err and "Traceback" not in done.err, done.said
    for group in ([], ["data"], ["bench"]):
        done = jepa(*group)
        assert done.code in (0, 2) and "Usage" in done.out + done.err and "Traceback" not in done.err, done.said
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_places_that_cannot_be_used(kind: str, lab: Lab, jepa: Jepa, elsewhere: Path) -> None:
    bad, out = bad_place(kind, elsewhere), elsewhere / "out"
    before = verbs.files(elsewhere, lab.root)
    wrong = []
    for verb, rows in places(lab, bad, out).items():
        for words in rows:
            done = jepa(*verb.split(), *words)
            told = done.code == 2 and str(bad) in done.err and "Traceback" not in done.err and not done.out
            if not told and (verb, kind) not in MEANT:
                wrong.append((verb, *words, done.said[-600:]))
            assert verbs.files(elsewhere, lab.root) == before, f"{verb} {words} has written something"
    assert not wrong, "\n\n".join(map(str, wrong))


@pytest.mark.parametrize("kind", ["file", "junk"])
def test_folders_that_hold_something_else(kind: str, lab: Lab, jepa: Jepa, elsewhere: Path) -> None:
    bad = bad_place(kind, elsewhere)
    before = verbs.files(elsewhere, lab.root)
    for verb, words in targets(lab, bad).items():
        done = jepa(*verb.split(), *words)
        assert done.code == 2 and str(bad) in done.err and "Traceback" not in done.err, (verb, done.said)
        assert verbs.files(elsewhere, lab.root) == before, f"{verb} has written something"


def test_settings_that_do_not_exist_or_are_of_the_wrong_type(lab: Lab, jepa: Jepa, elsewhere: Path) -> None:
    before = verbs.files(elsewhere, lab.root)
    for verb, (words, number) in settings(lab, elsewhere / "out").items():
        for setting, named in ((f"{number}x=1", f"{number}x"), (f"{number}=viele", "viele"), ("ohne", "ohne")):
            done = jepa(*verb.split(), *words, setting)
            assert done.code == 2 and "Traceback" not in done.err and not done.out, (verb, setting, done.said)
            assert named.rpartition(".")[2] in done.err, (verb, setting, done.said)
            assert verbs.files(elsewhere, lab.root) == before, f"{verb} {setting} has written something"


def test_every_verb_works_with_odd_names_and_prints_one_document(lab: Lab, jepa: Jepa, elsewhere: Path) -> None:
    out = elsewhere / "Ausgabe mit Leerzeichen ✓"
    out.mkdir()
    made = {}
    for words in working(lab, out):
        done = jepa(*words, "--json")
        assert done.code == 0, (words, done.said)
        made[" ".join(map(str, words[:2]))] = json.loads(done.out)  # one document, nothing before or after it
        assert done.out.isascii() and "\x1b" not in done.out + done.err
    assert made["data build"]["splits"]["val"]["samples"] == 16 and made["data show"]["shown"] == "train"
    assert made["data build"]["hash"] == made["data show"]["hash"]
    trained = next(v for k, v in made.items() if k.startswith("train"))
    assert (trained["state"], trained["step"], trained["stopped"]) == ("finished", 2, False)
    assert Path(trained["checkpoint"]).is_dir() and trained["loss"] > 0
    report = next(v for k, v in made.items() if k.startswith("report"))
    assert Path(report["page"]).is_file() and report["runs"][0]["steps"] == 4
    assert next(v for k, v in made.items() if k.startswith("extract"))["samples"] == 96
    assert [Path(p).name for p in made[f"show {lab.run}"]["pictures"]] == ["pca.png"]
    assert next(v for k, v in made.items() if k.startswith("submit"))["script"].startswith("#!/bin/bash")


def test_what_is_printed_beside_the_document_goes_to_standard_error(
    lab: Lab, jepa: Jepa, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jepa.data import show

    real = show.facts
    monkeypatch.setattr(show, "facts", lambda found: print("a library says hello") or real(found))
    done = jepa("data", "show", lab.data, "--picture", elsewhere / "x.png", "--json")
    assert json.loads(done.out)["name"] == "tiny" and "hello" in done.err
    done = jepa("data", "show", lab.data, "--picture", elsewhere / "x.png")
    assert "hello" in done.out, "standard output is its own again"
    done = jepa("data", "show", "nowhere", "--json")
    assert done.code == 2 and done.out == "" and "nowhere" in done.err
    assert "hello" in jepa("data", "show", lab.data, "--picture", elsewhere / "x.png").out


def test_relative_paths_mean_the_folder_one_is_in(
    lab: Lab, jepa: Jepa, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = elsewhere / "zu Hause", elsewhere / "anderswo"
    home.mkdir(), away.mkdir()
    shutil.copytree(lab.data, home / "daten")
    shutil.copy(lab.config, home / "klein.yaml")
    monkeypatch.chdir(home)
    short = ("train.duration.steps=2", "optim.warmup.steps=1")
    assert jepa("train", "klein.yaml", "data.path=daten", *short).code == 0
    run = home / "runs" / "übung"
    monkeypatch.chdir(away)
    for words in (["train", run, "--extend", "steps=3"], ["probe", run, *PROBE], ["train", run, "--resume"]):
        done = jepa(*words)
        assert done.code == 2 and f"daten (in {away})" in done.err and "data.path=" in done.err, done.said
    again = Path("..") / "zu Hause" / "runs" / "übung"
    done = jepa("train", again, "--extend", "steps=3", "data.path=../zu Hause/daten")
    assert done.code == 0 and "step 3" in done.out, done.said
    assert jepa("probe", again, *PROBE, "dataset=../zu Hause/daten").code == 0
    extract = ["extract", again, home / "daten", "-o", "f"]
    for words in (["inspect", again], ["watch", again, "--once"], ["report", again], extract):
        done = jepa(*words)
        assert done.code == 0, (words, done.said)
    assert sorted(p.name for p in away.iterdir()) == ["f"], "nothing else was written here"
    monkeypatch.chdir(run)
    done = jepa("train", ".", "--extend", "steps=4", "data.path=../../daten")
    assert done.code == 0 and "step 4" in done.out, done.said
