"""Rules every file keeps: length, no stubs, no places of one machine, YAML that parses, links that lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jepa import config
from tests.hygiene.tree import PACKAGE, ROOT, files, modules, texts

LONGEST = 400
HOMES = re.compile(r"(?<![\w.<>-])/(?:" + "|".join(["root", "work", "home", "Users"]) + r")/\w")
UNFINISHED = re.compile(r"#.*\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")


def too_long(package: Path) -> list[str]:
    return [f"{path}: {n} lines" for path, source in modules(package) if (n := len(source.splitlines())) > LONGEST]


def stubs(package: Path) -> list[str]:
    """Bodies that do nothing, NotImplementedError outside the method contract, and notes of unfinished work."""
    found: list[str] = []
    for path, source in modules(package):
        tree = ast.parse(source)
        protocol = {
            id(function)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
            for function in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.unparse(node.exc):
                if path not in ("methods/base.py", "methods/world.py"):
                    found.append(f"{path}:{node.lineno}: NotImplementedError")
            elif isinstance(node, ast.FunctionDef) and id(node) not in protocol and _does_nothing(node):
                found.append(f"{path}:{node.lineno}: {node.name} does nothing")
        for number, line in enumerate(source.splitlines(), 1):
            if UNFINISHED.search(line):
                found.append(f"{path}:{number}: {line.strip()}")
    return found


def _does_nothing(function: ast.FunctionDef) -> bool:
    if any("overload" in ast.unparse(d) or "abstract" in ast.unparse(d) for d in function.decorator_list):
        return False
    last = function.body[-1]
    return isinstance(last, ast.Pass) or (
        len(function.body) <= 2
        and isinstance(last, ast.Expr)
        and isinstance(last.value, ast.Constant)
        and last.value.value is ...
    )


def test_no_file_is_too_long() -> None:
    assert too_long(PACKAGE) == []


def test_nothing_is_unfinished() -> None:
    assert stubs(PACKAGE) == []


def test_these_checks_see_what_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * (LONGEST + 1))
    (tmp_path / "stub.py").write_text(
        "def f():\n    ...\n\ndef g():\n    raise NotImplementedError('later')\n# " + "TO" + "DO: more\n"
        "class P(Protocol):\n    def h(self): ...\n"
    )
    assert too_long(tmp_path) == [f"long.py: {LONGEST + 1} lines"]
    assert [line.split(": ")[0] for line in stubs(tmp_path)] == ["stub.py:1", "stub.py:5", "stub.py:6"]
    assert HOMES.search("path = '" + "/ho" + "me/someone/data'") and not HOMES.search("https://host/home/page")


def test_no_file_names_a_place_of_one_machine() -> None:
    places = [str(ROOT) + "/", *([f"{Path.home()}/"] if len(Path.home().parts) > 1 else [])]
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if HOMES.search(line) or any(place in line for place in places)
    ]
    assert found == []


YAML = [path for path in files() if path.suffix in {".yaml", ".yml"}]


@pytest.mark.parametrize("path", YAML, ids=[p.relative_to(ROOT).as_posix() for p in YAML])
def test_yaml_parses_without_double_keys(path: Path) -> None:
    assert config.read_yaml(path)


def test_the_yaml_folders_are_not_empty_and_hold_no_python() -> None:
    for kind in ("configs", "datasets", "eval"):
        assert list((ROOT / kind).glob("*.yaml")), f"{kind} has no YAML file"
        assert not list((ROOT / kind).rglob("*.py")), f"{kind} would shadow a Python package"


LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path}: {target}"
        for path, text in texts()
        if path.endswith(".md")
        for target in LINK.findall(text)
        if "://" not in target and not (ROOT / path).parent.joinpath(target).exists()
    ]
    assert broken == []
