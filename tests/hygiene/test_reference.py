"""The committed configuration reference says what the dataclasses say."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from jepa import resources
from tests.hygiene.tree import ROOT


def loaded(name: str) -> ModuleType:
    """A script that writes a page of the reference."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/reference/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return loaded("generate")


def test_the_reference_is_up_to_date(generator: ModuleType) -> None:
    committed = generator.OUT.read_text(encoding="utf-8")
    assert committed == generator.render(), "run `make docs`"


def test_the_cards_are_up_to_date() -> None:
    cards = loaded("cards")
    assert cards.OUT.read_text(encoding="utf-8") == cards.render(), "run `make docs`"


@pytest.mark.parametrize("name", resources.names("configs"))
def test_every_training_configuration_says_what_it_takes_and_reaches(name: str) -> None:
    head = resources.find("configs", name).read_text(encoding="utf-8").partition("\n\n")[0]
    assert "#   jepa " in head or "#   accelerate launch" in head or "#   make " in head
    assert name == "debug" or all(f"# {word}:" in head for word in ("hardware", "hours", "score")), head


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
