"""Names that carry parameters: `sliding(window=20, stride=10)@100`, read and written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from llmrank.errors import SpecError

_SPEC = re.compile(
    r"\s*(?P<name>\w+)\s*(?:\((?P<inside>.*)\))?\s*(?:@\s*(?P<depth>[0-9]{1,9}))?\s*", re.DOTALL
)
_INNER = re.compile(r"\w+\s*\(|[^\W\d]\w*\s*(@.*)?$", re.DOTALL)
_VALUE = re.compile(r"[^()]*")


class Spec(NamedTuple):
    """A name, the parameters given in brackets, the depth behind `@` if any, and what stands first
    in the brackets without an equals sign of its own: another spec."""

    name: str
    parameters: Mapping[str, str]
    depth: int | None
    inner: str = ""


def split(text: str) -> Spec:
    """Take a spec apart; the values stay text."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise SpecError(f"cannot read {text!r}; it should look like name(parameter=value)@depth")
    given: dict[str, str] = {}
    inside = match["inside"] or ""
    found = parts(inside, ",") if inside.strip() else []
    inner = found[0] if found and _INNER.match(found[0]) else ""
    for part in found[1:] if inner else found:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not part:
            raise SpecError(f"{match['name']}: nothing stands beside a comma in ({inside})")
        if not equals or not key or key in given or not _VALUE.fullmatch(value):
            raise SpecError(f"{match['name']}: cannot read {part!r}; write parameter=value, once")
        given[key] = value
    depth = None if match["depth"] is None else int(match["depth"])
    return Spec(match["name"], given, depth, inner)


def parts(text: str, separator: str) -> list[str]:
    """What stands between separators that are in no brackets."""
    found, level = [""], 0
    for piece in re.split(f"([()]|{re.escape(separator)})", text):
        level += (piece == "(") - (piece == ")")
        if level < 0:
            break
        if piece == separator and not level:
            found.append("")
        else:
            found[-1] += piece
    if level:
        raise SpecError(f"the brackets in {text!r} do not match")
    return [part.strip() for part in found]


def defaults(function: Callable[..., Any]) -> dict[str, object]:
    """Keyword-only parameters of a function that have defaults, and these."""
    found = inspect.signature(function).parameters.values()
    wanted = (p for p in found if p.kind is p.KEYWORD_ONLY and p.default is not p.empty)
    return {p.name: p.default for p in wanted}


def bind(name: str, function: Callable[..., Any], given: Mapping[str, object]) -> dict[str, object]:
    """The given parameters, each read as the type that its default has."""
    allowed = defaults(function)
    for key in given:
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise SpecError(f"{name} has no parameter {key!r}; its parameters are: {known}")
    return {key: _read(f"{name}: {key}", value, allowed[key]) for key, value in given.items()}


def written(name: str, parameters: Mapping[str, object], inner: str = "") -> str:
    """The spec of a name with its parameters; `split` and `bind` read it back."""
    settings = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in parameters.items()
    ]
    inside = ", ".join([inner, *settings] if inner else settings)
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
        # Python's numbers may be written in the digits of any script.
        if kind is str or value.isascii():
            return kind(value)  # type: ignore[call-arg]
    except ValueError:
        pass
    raise SpecError(f"{place} must be {kind.__name__}, not {value!r}")


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
