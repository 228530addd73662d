"""A user's mistake in a setting, told in one line: which key or file, what is wrong, what there is instead.

Hydra and OmegaConf know what went wrong, and say it over several lines, wrapped in each other's exceptions.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigTypeError,
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedValueType,
    ValidationError,
)

from falcon_h1r.config import Config
from falcon_h1r.types import InputError

CONFIG_ERRORS = (InputError, HydraException, OmegaConfBaseException, yaml.YAMLError)

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


def one_line(error: BaseException) -> str:
    """An error in one line, for stderr."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, InputError):
            return " ".join(str(cause).split())
        if isinstance(cause, MissingConfigException):
            return _unknown_file(cause)
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: not of the form key=value"
        if isinstance(cause, yaml.MarkedYAMLError):
            return _broken_yaml(cause)
        if found := re.match(r"Ambiguous value for argument '(.*)'", str(cause)):
            return f"{found[1]}: several values, where one is expected"
    origin = next((str(cause) for cause in causes if isinstance(cause, HydraException)), "")
    for cause in causes:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _about_key(cause.full_key, cause, origin) + _where(origin)
    return _first_sentence(error)


def refuse_unknown_keys(composed: DictConfig) -> None:
    """Refuse keys outside the schema, which `+key=value` would slip in and nothing would ever read.

    Raises:
        InputError: naming the first.
    """
    for key in _unknown_keys(composed, Config, ""):
        raise InputError(no_such_key(key))


def no_such_key(key: str) -> str:
    """The complaint about a key that does not exist, with the nearest that does."""
    keys = [known for known in config_keys() if not key.startswith(f"{known}.")]
    section, _, name = key.rpartition(".")
    deeper = [known for known in keys if known.startswith(section) and known.endswith(f".{name}")]
    alike = [
        known
        for known in difflib.get_close_matches(key, keys, n=5, cutoff=0.6)
        if difflib.SequenceMatcher(None, known.rpartition(".")[2], name).ratio() > 0.6
    ]
    near = deeper or alike
    return f"{key}: no such key" + (f" (did you mean {near[0]}?)" if near else "")


def config_keys() -> list[str]:
    """Every key of the schema, in dotted form."""

    def walk(node: Any, prefix: str) -> list[str]:
        keys = []
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                keys.extend(walk(value, f"{prefix}{name}."))
        return keys

    return walk(asdict(Config()), "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# -----------------------------------------------------------------------------
# Files


def _unknown_file(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"--config-name={name}: no such file"
    there_are = f" (there are: {', '.join(error.options)})" if error.options else ""
    return f"{group}={name}: no such {group}{there_are}"


def _broken_yaml(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}" if mark is not None else "a config file"
    return f"{place}: not YAML ({error.problem})"


def _where(origin: str) -> str:
    """`In 'experiment/x': ...` names the file that holds the setting; an override names none."""
    found = re.match(r"In '([^']+)'", origin)
    return f" (in {found[1]}.yaml)" if found else ""


# -----------------------------------------------------------------------------
# Keys and values


def _about_key(key: str, error: OmegaConfBaseException, origin: str) -> str:
    override = re.search(r"Error merging override \+*([^=]+)=(.*)", origin, re.DOTALL)
    if isinstance(error, InterpolationKeyError):
        return f"{key}: {_first_sentence(error)}"
    found = re.search(r"[Vv]alue '(.*?)'", str(error), re.DOTALL)
    value = found[1] if found else ""
    if override is not None and not key.startswith(f"{override[1]}."):
        key, value = (
            override[1],
            override[2],
        )  # OmegaConf names entries of free-form sections by their last part
    expected = _type_of(key)
    if expected is None:
        of_list = re.search(r"Could not override '([^']+)'", origin)
        if of_list is not None and typing.get_origin(_type_of(of_list[1])) is list:
            return f"{of_list[1]}: {_first_sentence(error)}"
        return no_such_key(key)
    if adding := _how_to_add(key) if re.search("not in struct|is not a subclass of", str(error)) else None:
        return f"{key}: no entry of that name; {adding} adds one"
    if not isinstance(error, (ValidationError, UnsupportedValueType, ConfigTypeError)):
        return f"{key}: {_first_sentence(error)}"
    return f"{key}{'=' + value if value else ''}: has to be {_describe(expected)}"


def _how_to_add(key: str) -> str | None:
    """The override that adds an entry to a free-form section, which OmegaConf takes only as a whole."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        if typing.get_origin(_type_of(".".join(parts[:depth]))) is dict:
            return f"'+{'.'.join(parts[:depth])}={{{parts[depth]}: ...}}'"
    return None


def _type_of(key: str) -> Any:
    """The schema's type of a dotted key, or None where there is no such key."""
    node: Any = Config
    for name in key.split("."):
        if is_dataclass(node):
            node = typing.get_type_hints(node).get(name)
        elif typing.get_origin(node) is dict:
            node = typing.get_args(node)[1]
        else:
            return None
    return node


def _describe(expected: Any) -> str:
    if typing.get_origin(expected) in (typing.Union, UnionType):
        kinds = [kind for kind in typing.get_args(expected) if kind is not type(None)]
        return " or ".join([*(_describe(kind) for kind in kinds), "null"])
    if is_dataclass(expected) or typing.get_origin(expected) is dict:
        return "a section: {name: value, ...}"
    if typing.get_origin(expected) is list and is_dataclass(typing.get_args(expected)[0]):
        return "a list of sections: [{name: value, ...}, ...]"
    return TYPE_NAMES.get(typing.get_origin(expected) or expected, "something else")


def _unknown_keys(node: Any, expected: Any, prefix: str) -> Iterator[str]:
    """Keys of a composed section that its dataclass does not have. Free-form sections may hold any."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return
    if is_dataclass(expected):
        hints = typing.get_type_hints(expected)
        known = {field.name for field in fields(expected)}
    for name in node:
        assert isinstance(name, str)
        key = f"{prefix}{name}"
        if is_dataclass(expected):
            if name not in known:
                yield key
                continue
            yield from _unknown_keys(node._get_node(name), hints[name], f"{key}.")
        elif typing.get_origin(expected) is dict:
            yield from _unknown_keys(node._get_node(name), typing.get_args(expected)[1], f"{key}.")


def _first_sentence(error: BaseException) -> str:
    """The first line of a message that says something, and the next where it only introduces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
