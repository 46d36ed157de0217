"""Does what a page of the guide says: runs its fences in order, in a folder, as they stand on the page.

A page's ```sh fences are run line by line: `jepa` in this process, `pip install` checked against pyproject.toml, all
else by bash. Its ```python fences share one namespace, like a session. What a comment in front of a fence says:

    <!-- test: skip: REASON -->                  the fence is not run
    <!-- test: save FILE -->                     the reader is told to save this fence as FILE
    <!-- test: train a.b=1 | probe c.d=2 -->     words added to the fence's `jepa train`, `jepa probe`, for smallness
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jepa import cli
from tests.hygiene.tree import ROOT

FENCE = re.compile(r"^(?:<!-- test: (?P<test>.*?) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
RUN = {"sh", "python"}
FOUND_SOMETHING = {"doctor": 4, "data check": 4}  # exit code: done, and something was found


@dataclass(frozen=True)
class Fence:
    language: str
    text: str
    test: str  # what the comment in front says

    @property
    def skipped(self) -> str | None:
        return self.test.removeprefix("skip:").strip() if self.test.startswith("skip:") else None

    @property
    def saved_as(self) -> str | None:
        return self.test.removeprefix("save ").strip() if self.test.startswith("save ") else None

    def added(self) -> dict[str, list[str]]:
        """Words to add to the commands of this fence, by verb."""
        if not self.test or self.skipped is not None or self.saved_as is not None:
            return {}
        groups = [shlex.split(group) for group in self.test.split(" | ")]
        return {verb_of(words): words[len(verb_of(words).split()) :] for words in groups}


def verb_of(words: list[str]) -> str:
    """`jepa jobs --in X` is jobs, `jepa jobs logs X` is jobs logs."""
    two = words[0] in {"data", "bench", "jobs"} and words[1:2] != [] and not words[1].startswith("-")
    return " ".join(words[: 1 + two])


def fences(page: str) -> list[Fence]:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [Fence(m["language"], m["text"], " ".join((m["test"] or "").split())) for m in FENCE.finditer(text)]


def nav(section: str) -> list[str]:
    """Pages of a section of the site, without `.md`."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (pages,) = [entry[section] for entry in site["nav"] if section in entry]
    return [path.removesuffix(".md") for page in pages for path in page.values()]


def lines(shell: str) -> list[str]:
    """A fence's commands, with continued lines joined and comments left out."""
    joined = shell.replace("\\\n", " ").splitlines()
    return [line for each in joined if (line := re.sub(r"(^|\s)#.*$", "", each).strip())]


def installs(words: list[str]) -> None:
    """`pip install` names extras that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for word in words for found in re.findall(r"\[(.*?)\]", word) for extra in found.split(",")}
    assert named <= set(extras), f"no such extra: {sorted(named - set(extras))}"
    assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()


@dataclass
class Reader:
    """Follows a page in the current folder; `places` are put in for what the page leaves to its reader."""

    page: str
    places: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)  # of the python session

    def follow(self) -> None:
        done = 0
        for number, fence in enumerate(fences(self.page)):
            text = fence.text
            for name, real in self.places.items():
                text = text.replace(name, real)
            if fence.saved_as is not None:
                Path(fence.saved_as).write_text(text, encoding="utf-8")
            elif fence.skipped is None and fence.language == "sh":
                self.shell(text, fence.added(), f"docs/{self.page}.md, fence {number}")
                done += 1
            elif fence.skipped is None and fence.language == "python":
                exec(compile(text, f"docs/{self.page}.md, fence {number}", "exec"), self.names)
                done += 1
        assert done, f"docs/{self.page}.md: nothing was run"

    def shell(self, text: str, added: dict[str, list[str]], where: str) -> None:
        met = set()
        for line in lines(text):
            words = shlex.split(line)
            while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # PYTHONPATH=. jepa …: the test has set it
                words = words[1:]
            if words[:2] == ["pip", "install"]:
                installs(words)
            elif words[0] == "jepa":
                met.add(verb_of(words[1:]))
                words = words[1:] + added.get(verb_of(words[1:]), [])
                code = cli.main(words)
                assert code in {0, FOUND_SOMETHING.get(verb_of(words), 0)}, f"{where}: exit code {code} of jepa {words}"
            else:
                ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=Path.cwd())
                assert ended.returncode == 0, f"{where}: {line}\n{ended.stderr}"
        assert set(added) <= met, f"{where}: the comment adds words to {sorted(set(added) - met)}, which is not there"
