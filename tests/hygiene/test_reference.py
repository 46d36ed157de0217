"""The committed configuration reference says what the dataclasses say."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from tests.hygiene.tree import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/reference/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(generator: ModuleType) -> None:
    committed = generator.OUT.read_text(encoding="utf-8")
    assert committed == generator.render(), "run `make docs`"


def test_every_setting_says_what_it_is(generator: ModuleType) -> None:
    silent = [line for line in generator.render().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert silent == []


def test_comments_are_read_from_the_line_they_stand_on(generator: ModuleType) -> None:
    assert generator.comments(_Example) == {"first": "what it is", "second": "over two lines"}


@dataclass
class _Example:
    first: int = 1  # what it is
    second: tuple[int, ...] = (2,)  # over two lines
    third: str = "# not a comment"
