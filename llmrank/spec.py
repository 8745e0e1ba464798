"""Names that carry parameters: `sliding(window=20, stride=10)@100`, read and written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from llmrank.errors import SpecError

_SPEC = re.compile(
    r"\s*(?P<name>\w+)\s*(?:\((?P<parameters>[^()]*)\))?\s*(?:@\s*(?P<depth>\d{1,9}))?\s*"
)


class Spec(NamedTuple):
    """A name, the parameters given in brackets, and the depth given behind `@`, if any."""

    name: str
    parameters: Mapping[str, str]
    depth: int | None


def split(text: str) -> Spec:
    """Take a spec apart; the values stay text."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise SpecError(f"cannot read {text!r}; it should look like name(parameter=value)@depth")
    given: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in (match["parameters"] or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or key in given:
            raise SpecError(f"{match['name']}: cannot read {part!r}; write parameter=value, once")
        given[key] = value
    depth = None if match["depth"] is None else int(match["depth"])
    return Spec(match["name"], given, depth)


def defaults(function: Callable[..., Any]) -> dict[str, object]:
    """Keyword-only parameters of a function and their defaults."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def bind(name: str, function: Callable[..., Any], given: Mapping[str, object]) -> dict[str, object]:
    """The given parameters, each read as the type that its default has."""
    allowed = defaults(function)
    for key in given:
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise SpecError(f"{name} has no parameter {key!r}; its parameters are: {known}")
    return {key: _read(f"{name}: {key}", value, allowed[key]) for key, value in given.items()}


def written(name: str, parameters: Mapping[str, object]) -> str:
    """The spec of a name with its parameters; `split` and `bind` read it back."""
    inside = ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in parameters.items()
    )
    return f"{name}({inside})" if inside else name


def _read(place: str, value: object, default: object) -> object:
    # A parameter whose default says nothing is a text.
    kind = str if default is None else type(default)
    if not isinstance(value, str):
        return _taken(place, value, kind)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise SpecError(f"{place} must be true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return kind(value)  # type: ignore[call-arg]
    except ValueError as error:
        raise SpecError(f"{place} must be {kind.__name__}, not {value!r}") from error


def _taken(place: str, value: object, kind: type) -> object:
    """A value given in Python; a number of any library is taken for one of Python's."""
    if isinstance(value, bool) is (kind is bool):
        if kind is int and isinstance(value, Integral):
            return int(value)
        if kind is float and isinstance(value, Real):
            return float(value)
        if isinstance(value, kind):
            return value
    raise SpecError(f"{place} must be {kind.__name__}, not {value!r}")
