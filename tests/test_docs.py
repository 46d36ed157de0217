"""What the guide names exists: commands, options, shipped files. That tutorials work: tests/test_tutorials.py."""

from __future__ import annotations

import re

import pytest

from jepa import cli, resources, rundir
from tests.hygiene.tree import ROOT
from tests.tutorials import verb_of


def commands() -> list[tuple[str, list[str]]]:
    """(page, words behind `jepa`) of every command in a shell block."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for shell in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in shell.replace("\\\n", " ").splitlines():
                words = line.split("#")[0].split()
                if "jepa" in words:
                    found.append((page.name, words[words.index("jepa") + 1 :]))
    return found


def test_every_name_in_the_documents_is_shipped() -> None:
    """Configurations, recipes and suites that commands name exist, unless they are a path of the reader's."""
    kinds = {"train": "configs", "data build": "datasets", "--suite": "eval"}
    named = [
        (page, kind, m.group(1))
        for page, words in commands()
        for verb, kind in kinds.items()
        if (m := re.search(rf"{verb} (\S+)", " ".join(words)))
    ]
    assert len(named) > 10
    missing = [
        (page, kind, name)
        for page, kind, name in named
        if not name.endswith(".yaml") and not name.startswith("runs/") and name not in resources.names(kind)
    ]
    assert missing == []


def test_what_may_change_on_resume_is_spelt_out() -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for marker, keys in (("may-change", rundir.MAY_CHANGE), ("may-change-inexact", rundir.MAY_CHANGE_INEXACT)):
        found = re.search(rf"<!-- {marker} -->\n((?:- .*\n)+)", page)
        assert found, f"docs/checkpoints.md has no list behind <!-- {marker} -->"
        assert re.findall(r"^- `([^`]+)`", found.group(1), re.MULTILINE) == list(keys)


def test_every_command_in_the_documents_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each `jepa …` line of a shell block names a verb and options that the command line has."""
    monkeypatch.setenv("COLUMNS", "200")
    helps: dict[str, str] = {}

    def told(verb: str) -> str:
        if verb not in helps:
            helps[verb] = capsys.readouterr().out if cli.main([*verb.split(), "--help"]) == 0 else ""
        return helps[verb]

    problems = []
    for page, words in commands():
        verb = verb_of([word for word in words if word not in {"--quiet", "--verbose"}])
        known = told(verb) + (told(verb_of(words[1:])) if verb == "submit" else "")  # options of the verb it sends
        if not told(verb):
            problems.append(f"{page}: no such command: jepa {verb}")
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        problems += [
            f"{page}: jepa {verb} has no {option}"
            for option in options
            if option != "--help" and not re.search(rf"(?<![\w-]){option}(?![\w-])", known)
        ]
    assert problems == []
