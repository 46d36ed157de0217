"""Nested plain values, read strictly: into dataclasses, from YAML, merged, and overridden from the command line.

An unknown key is an error that names the nearest valid one, a wrong type an error that says what was given and what
is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from jepa.errors import ConfigError

T = TypeVar("T")

# --- into dataclasses ------------------------------------------------------------------------------------------


def build(cls: type[T], values: Any, where: str = "") -> T:
    """A dataclass from nested plain values, every key known and every value of the declared type.

    Raises:
        ConfigError: unknown key (nearest one named), missing key, or wrong type, with its dotted place.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {_show(values)}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(f"{where}.{key}" if where else str(key), str(key), list(known)))
    kwargs = {k: convert(v, hints[k], f"{where}.{k}" if where else k) for k, v in values.items()}
    missing = [
        n
        for n, f in known.items()
        if n not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where or cls.__name__}: missing required key(s): {', '.join(missing)}")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def convert(value: Any, hint: Any, where: str) -> Any:
    """One value to its declared type; see `build`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return convert(value, option, where)
            except ConfigError as error:
                errors.append(str(error))
        raise ConfigError(errors[0])
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(a is value for a in args if isinstance(a, bool)):
            allowed = ", ".join(map(repr, args))
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: got {_show(value)}, allowed: {allowed}.{hint_text}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _tuple(value, args, where)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_show(value)}")
        return [convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {_show(value)}")
        inner = args[1] if args else Any
        return {str(k): convert(v, inner, f"{where}.{k}") for k, v in value.items()}
    return _scalar(value, hint, where)


def _tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_show(value)}")
        return tuple(convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if set(args) == {int} and isinstance(value, int) and not isinstance(value, bool):
        return (value,) * len(args)  # one number for a square
    if not isinstance(value, list | tuple) or len(value) != len(args):
        raise ConfigError(f"{where}: expected a list of {len(args)} values, got {_show(value)}")
    return tuple(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is bool or isinstance(value, bool):
        ok = hint is bool and isinstance(value, bool)
    else:
        ok = isinstance(value, hint)
    if not ok:
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {_show(value)}")
    return value


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def unknown_key(where: str, key: str, known: list[str]) -> str:
    """The message for a key that does not exist, naming the nearest valid one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {where!r}.{hint} Valid keys here: {', '.join(sorted(known))}"


# --- files, merging, overrides ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one mapping (plain YAML keeps the last in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be plain text, got {key!r}")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 4:00:00 as a number to base 60; here it is text. The first pattern that fits decides.
_CLOCK = ("tag:yaml.org,2002:str", re.compile(r"\d+(:[0-5]?\d)+$"))
_Loader.yaml_implicit_resolvers = {
    first: [_CLOCK, *found] if first in set("0123456789") else found
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, safely loaded; errors name the file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a configuration") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(values).__name__}")
    return values


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`: mappings merge key by key, everything else (lists too) replaces."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if key == "*":  # in an overlay: every entry that is there
            out = {k: merge(v, value) if isinstance(v, dict) else v for k, v in out.items()}
        elif isinstance(old, dict) and isinstance(value, dict) and not (_is_duration(old) and _is_duration(value)):
            out[key] = merge(old, value)
        else:
            out[key] = merge({}, value) if isinstance(value, dict) and "*" in value else value
    return out


def _is_duration(value: dict[str, Any]) -> bool:
    # {steps: 10} over {epochs: 300} must replace it: together they would be two durations
    return bool(value) and set(value) <= {"steps", "epochs", "samples"}


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply ``a.b.c=value`` assignments (values parsed as YAML) to nested plain values."""
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"cannot read override {assignment!r}: write key.subkey=value")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read the value of override {assignment!r}: {error}") from None
        *parents, last = name.strip().split(".")
        change: dict[str, Any] = {last: value}
        for part in reversed(parents):
            change = {part: change}
        values = merge(values, change)
    return values
