"""Commands that read their argument and their options from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from llmrank.errors import InputError


class FromFile(TyperCommand):
    """A command whose argument may be a TOML file with the argument and any of the options.

    What is given on the command line goes before the file, and the file before the environment.
    """

    argument: ClassVar[str]
    example: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's own
        """Put the options of the file before those that were given."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        path = given.get(self.argument)
        if not (isinstance(path, str) and path.endswith(".toml")):
            return super().parse_args(ctx, args)
        content = _read(path)
        chain = content.pop(self.argument, None)
        if not isinstance(chain, str):
            remedy = f'{self.argument} = "{self.example}"'
            raise InputError(f"no {self.argument}", path=path, remedy=remedy)
        named = {_name(option): option for option in self.params if option.name != self.argument}
        written: list[str] = []
        for name, value in content.items():
            if (option := named.get(name)) is None:
                known = ", ".join(sorted(named))
                raise InputError(f"no option {name!r}", path=path, remedy=f"there are: {known}")
            words = _words(option, value, path)
            written += words if option.name not in given else []
        try:
            rest = super().parse_args(ctx, [*written, *args])
        except typer.BadParameter as error:
            wrong: Any = error.param
            if wrong is None or wrong.name in given or _name(wrong) not in content:
                raise
            raise InputError(f"{_name(wrong)}: {error.message}", path=path) from error
        ctx.params[self.argument] = chain
        return rest


def _read(path: str) -> dict[str, object]:
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from error
    return {name.replace("_", "-"): value for name, value in content.items()}


def _name(option: Any) -> str:  # noqa: ANN401 - Typer's own
    """The long name of an option, without its dashes."""
    return str(max(option.opts, key=len)).lstrip("-")


def _words(option: Any, value: object, path: str) -> list[str]:  # noqa: ANN401 - Typer's own
    """An option with its value as on the command line."""
    name = _name(option)
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}", path=path)
        return [f"--{name}"] if value else option.secondary_opts[:1]
    several = value if option.multiple and isinstance(value, list) else [value]
    for one in several:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise InputError(f"{name} must be a text or a number, not {one!r}", path=path)
    return [f"--{name}={one}" for one in several]


class Pipeline(FromFile):
    """`llmrank run`."""

    argument = "pipeline"
    example = "bm25@100 >> adaptive@20"


class Recipe(FromFile):
    """`llmrank generate`."""

    argument = "recipe"
    example = "random@100 >> write >> round_trip"
