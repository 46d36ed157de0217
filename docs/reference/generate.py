"""Writes docs/reference/config.md: every setting with its type, default and meaning, read from the dataclasses.

    python docs/reference/generate.py

The meaning of a setting is the comment behind its field, so the reference cannot say anything the source does not.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import tokenize
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from jepa import config
from jepa.data import recipe, sources
from jepa.data.video import scan
from jepa.methods import base
from jepa.plan import solvers
from jepa.plan import suite as planning
from jepa.probe import suite
from jepa.rollout.suite import RolloutSuite
from jepa.slurm.profile import Profile

OUT = Path(__file__).with_name("config.md")
HEAD = """\
# Configuration reference

Made from the dataclasses by `make docs`; a test keeps it up to date. Every setting can be given in a file or as
`section.key=value` on the command line. An unknown key or a wrong type is an error that names the nearest valid key.
"""


def render() -> str:
    """The whole document."""
    parts = [HEAD, *_tables("Run configuration (`configs/*.yaml`)", "", config.RunConfig)]
    for name in base.known():
        cls, _ = base.resolve({"name": name})
        parts += _tables(f"Method `{name}`", "method", cls.Config)
    parts += _tables("Data set recipe (`datasets/*.yaml`)", "", recipe.Recipe)
    for kind in sources.KINDS:
        options = importlib.import_module(f"jepa.data.sources.{kind}").Config
        parts += _tables(f"Source `kind: {kind}`", "source", options)
    parts += _tables("Data check (`jepa data check DIR key=value`)", "", scan.ScanConfig)
    parts += _tables("Probe suite (`eval/*.yaml`)", "", suite.Suite)
    parts += _tables("Planning suite (`eval/*.yaml`)", "", planning.PlanSuite)
    for name, solver in solvers.SOLVERS.items():
        parts += _tables(f"Solver `name: {name}`", "planner.solver", solver.Config)
    parts += _tables("Roll-out suite (`eval/*-rollout.yaml`)", "", RolloutSuite)
    parts += _tables("Cluster profile (`slurm/*.yaml`)", "", Profile)
    return "\n".join(parts)


def _tables(title: str, where: str, root: type[Any]) -> list[str]:
    """A heading, then one table for the class and one for every dataclass its fields are made of."""
    lines = [f"## {title}\n"]
    waiting, done = [(where, root)], set()
    while waiting:
        place, cls = waiting.pop(0)
        if cls in done:
            continue
        done.add(cls)
        lines += _table(place, cls)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            inner = f"{place}.{field.name}" if place else field.name
            waiting += [(inner, part) for part in _dataclasses_in(hints[field.name])]
    return lines


def _table(place: str, cls: type[Any]) -> list[str]:
    hints, notes = typing.get_type_hints(cls), comments(cls)
    lines = [f"### {f'`{place}`' if place else 'Top level'}\n", f"{inspect.getdoc(cls) or ''}\n"]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        cells = (f"`{field.name}`", _type(hints[field.name]), _default(field), notes.get(field.name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def comments(cls: type[Any]) -> dict[str, str]:
    """Field name -> the comment behind it in the source (base classes first)."""
    found: dict[str, str] = {}
    for owner in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        source = inspect.cleandoc(inspect.getsource(owner)) + "\n"
        behind = {
            token.start[0]: token.string.lstrip("# ").split("  # ")[0].strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in behind:
                found[node.target.id] = behind[node.end_lineno]
    return found


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint] if hint is not config.Duration else []  # shown as a type, explained once
    return [found for part in get_args(hint) for found in _dataclasses_in(part)]


def _type(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint is config.Duration:
        return "one of `{steps: N}`, `{epochs: X}`, `{samples: N}`"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join("`null`" if part is type(None) else _type(part) for part in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {_type(args[0])}"
    if origin is tuple:
        kind = _type(args[0]) if len(set(args)) == 1 else ", ".join(map(_type, args))
        return f"list of {len(args)} {kind}" + (" (one number: both)" if set(args) == {int} else "")
    if origin is list:
        return f"list of {_type(args[0])}"
    if origin is dict or hint is dict:
        return "mapping"
    if dataclasses.is_dataclass(hint):
        return "section"
    return "any" if hint is Any else str(getattr(hint, "__name__", hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if isinstance(value, config.Duration):
        return f"`{config.to_dict(value)}`".replace("'", "")
    if dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, dict):
        return f"`{yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(_short, value))}]`"
    return f"`{_short(value)}`"


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if value != "" else '""'


if __name__ == "__main__":
    OUT.write_text(render(), encoding="utf-8")
    print(f"wrote {OUT.name}")
