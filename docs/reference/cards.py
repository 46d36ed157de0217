"""Writes docs/reference/recipes.md: what the head of every shipped file says, as one page of cards.

python docs/reference/cards.py
"""

from __future__ import annotations

import re
from pathlib import Path

from jepa import resources

OUT = Path(__file__).with_name("recipes.md")
HEAD = """\
# Recipe cards

What is shipped, each with its command, its hardware and what it is known to reach. Made by `make docs` from the heads
of the files. Every name works where a command takes a file (`jepa train demo`); to change one, copy the file or give
`section.key=value`. "Published" figures are those of the papers, made there; where nothing else stands, it was not
measured here.
"""
KINDS = (
    ("configs", "Training", "`jepa train NAME`"),
    ("datasets", "Data sets", "`jepa data build NAME --out DIR`"),
    ("eval", "Suites", "`jepa probe`, `jepa rollout` or `jepa plan RUN --suite NAME`"),
    ("slurm", "Clusters", "`jepa submit VERB ... --cluster NAME`"),
)


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for kind, title, use in KINDS:
        parts.append(f"## {title}\n\n{use}, files in `{kind}/`.\n")
        parts += [_card(name, resources.find(kind, name).read_text(encoding="utf-8")) for name in resources.names(kind)]
    return "\n".join(parts)


def _card(name: str, text: str) -> str:
    """A heading and the comment at the head of a file: commands stay as they are, facts become a list."""
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" ").rstrip())
    paragraphs = re.split(r"\n{2,}", "\n".join(head).strip("\n"))
    return "\n\n".join([f"### `{name}`", *map(_paragraph, paragraphs)]) + "\n"


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if lines[0].startswith("  "):
        return "\n".join(["```text", *(line[2:] for line in lines), "```"])
    found: list[str] = []
    building = False  # a command and what can be added to it
    for line in lines:
        fact = re.match(r"([A-Za-z]+):\s+(.*)", line)
        if building and not line.startswith("  "):
            found += ["```"]
            building = False
        if fact and fact[1] == "Build":
            found += ["", "```text", fact[2]]
            building = True
        elif building:
            found.append(f"  {line.strip()}")
        elif fact and (found or fact[1].islower() or "  " in line):
            found += [""] if found and not found[-1].startswith(("- ", "  ")) else []
            found.append(f"- **{fact[1]}**: {fact[2]}")
        else:
            found.append(f"  {line.strip()}" if line.startswith("  ") and found else line)
    return "\n".join([*found, *(["```"] if building else [])]).strip("\n")


if __name__ == "__main__":
    OUT.write_text(render(), encoding="utf-8")
    print(f"wrote {OUT.name}")
