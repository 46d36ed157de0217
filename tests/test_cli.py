"""The command line as a user meets it: real processes, exit codes, what goes to which stream."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jepa
from jepa import cli, options, verbosity
from jepa.errors import ConfigError
from jepa.progress import Display
from tests.hygiene.tree import ROOT

HEAVY = ("torch", "numpy", "torchvision", "PIL", "accelerate", "sklearn", "yaml")


def run(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jepa", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)


def test_help_answers_well_below_a_second() -> None:
    """In processor time: on a busy machine the clock on the wall says little about the program."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = run("--help")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0
    for verb in ("data", "train", "probe", "report", "inspect", "import", "doctor", "bench", "demo"):
        assert verb in done.stdout
    assert 0 < min(seconds) < 0.7, f"the fastest of three took {min(seconds):.2f} s"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "build", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from jepa.cli import main; code = main(sys.argv[1:]); "
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_version() -> None:
    assert run("--version").stdout.strip() == f"jepa {jepa.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ijepa-vit-s16"], "data.path is empty"),
        (["train", "ijepa-vit-z16"], "Did you mean 'ijepa-vit-"),
        (["train", "demo", "optim.lrr=1"], "Did you mean 'lr'?"),
        (["train", "demo", "optim.lr"], "write key.subkey=value"),
        (["train", "demo", "train.batch=many"], "train.batch: expected int, got 'many' (str)"),
        (["train", "demo", "--extend", "epoch=3"], "Did you mean 'epochs'?"),
        (["train", "demo", "--extend", "epochs=3", "--extend", "steps=1"], "data.path is empty"),
        (["data", "build", "nothing-like-it", "--out", "x"], "no such datasets file"),
        (["data", "show", "no-such-folder"], "no-such-folder"),
        (["probe", "no-such-run", "--suite", "digits"], "no-such-run"),
        (["report", "no-such-run"], "no-such-run"),
        (["inspect", "no-such-checkpoint"], "no-such-checkpoint"),
        (["export", "no-such-run", "--format", "onnx"], "no-such-run"),
        (["export", "x", "--format", "onyx"], "Did you mean 'onnx'?"),
        (["export", "x", "--format", "onnx", "--dtype", "fp8"], "fp32"),
        (["import", "no-such-file.pth", "--from", "ijepa", "--to", "x"], "no-such-file.pth"),
    ],
)
def test_a_users_mistake_is_one_message_on_stderr(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr  # no colour codes into a pipe
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "demo", "--no-such-option"], ["data", "biuld"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr


def test_a_run_folder_can_stand_for_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: mine\noptim: {lr: 0.5}\n")
    settings, out = options.run_settings(str(folder), ["seed=7"], None, False, [])
    assert (settings.name, settings.optim.lr, settings.seed, out) == ("mine", 0.5, 7, folder)


def test_where_a_run_goes_and_what_debug_and_trackers_change() -> None:
    settings, out = options.run_settings("ijepa-vit-b16", [], None, False, ["wandb"])
    assert out == Path("runs/ijepa-vit-b16")
    assert settings.train.trackers == ("tensorboard", "wandb")
    small, out = options.run_settings("ijepa-vit-b16", ["train.batch=4"], None, True, [])
    assert out == Path("runs/ijepa-vit-b16-debug"), "a try-out never lands in the real run's folder"
    assert small.train.batch == 4 and small.train.duration.steps == 2, "overrides win over the overlay"
    assert options.run_settings("demo", [], Path("elsewhere"), True, [])[1] == Path("elsewhere")


def test_extend_takes_one_duration() -> None:
    assert options.duration("epochs=50").epochs == 50
    with pytest.raises(ConfigError, match="'epochs'"):
        options.duration("epoch=50")


def test_a_bug_keeps_its_traceback_and_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from jepa import cli\n"
        "@cli.app.command()\n"
        "def broken():\n    raise ZeroDivisionError('seven')\n"
        "raise SystemExit(cli.main(['broken']))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "broken.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: seven" in done.stderr
    assert "This is a bug in jepa" in done.stderr and "jepa doctor" in done.stderr


def test_a_known_torch_mismatch_is_advice_not_a_bug(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text("{}")
    done = run("train", "demo", "--debug", f"data.path={tmp_path / 'd'}", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "torchvision::nms" in done.stderr and "released in pairs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupt_is_exit_code_130(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import signal, sys, time\nfrom jepa import cli\n"
        # a suite started in the background (nohup, CI) hands down an ignored SIGINT
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@cli.app.command()\n"
        "def slow():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(cli.main(['slow']))\n"
    )
    command = [sys.executable, str(tmp_path / "slow.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "import sys, typer\nfrom jepa import cli\n"
        "@cli.app.command()\n"
        "def long():\n    for i in range(100000):\n        typer.echo(str(i))\n"
        "sys.exit(cli.main(['long']))\n"
    )
    command = f"set -o pipefail; {sys.executable} {tmp_path / 'long.py'} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "0\n" and done.stderr == ""


def test_a_full_disk_or_a_locked_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(
        "import sys\nfrom jepa import cli\n"
        "@cli.app.command()\n"
        "def full():\n    with open('/dev/full', 'w') as f:\n        f.write('x')\n"
        "sys.exit(cli.main(['full']))\n"
    )
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = subprocess.run([sys.executable, tmp_path / "full.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_other_ranks_say_which_they_are() -> None:
    done = run("train", "ijepa-vit-s16", RANK="1")
    assert done.returncode == 2 and done.stderr.startswith("error: [rank 1] data.path is empty")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("jepa train vjepa2-", {"vjepa2-vit-g16", "vjepa2-vit-h16", "vjepa2-vit-l16"}),
        ("jepa train mine", {"mine.yaml", "mine/"}),
        ("jepa plan RUN --suite tworoom-l", {"tworoom-lewm"}),
        ("jepa submit train x --cluster h1", {"h100"}),
        ("jepa data bui", {"build"}),
    ],
)
def test_the_shell_completes_names_and_paths(words: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.yaml").touch()
    count = str(len(words.split()) - 1)
    asked = {"_JEPA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count, "PYTHONPATH": str(ROOT)}
    done = run(cwd=tmp_path, **asked)
    assert set(done.stdout.split()) == offered, done.stderr


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(verbosity.VARIABLE, "")
    assert cli.main(["train", "nosuch"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main(["--verbose", "train", "nosuch"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and told.splitlines()[-1].startswith("error:")
    with Display(10, 0) as display:
        display.say("noted")
    assert "noted" in capsys.readouterr().err
    assert cli.main(["--quiet", "train", "nosuch"]) == 2
    assert "error:" in capsys.readouterr().err
    with Display(10, 0) as display:
        display.say("noted")
    assert capsys.readouterr().err == ""
    assert cli.main(["-q", "-v", "doctor"]) == 2
    assert "give one of them" in capsys.readouterr().err
    logging.disable(logging.NOTSET)
    monkeypatch.setenv(verbosity.VARIABLE, "loud")
    assert verbosity.level() == verbosity.USUAL
