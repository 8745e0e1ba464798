"""Prompt templates: TOML files that say how an ask is worded; loading and checking them."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmrank.errors import InputError, SpecError
from llmrank.prompts.passages import Limits, Truncation

Kind = Literal["order", "pick", "grade", "likelihood", "attend", "write"]

PASSAGE_WORDS = 300

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

PLACEHOLDERS: Mapping[Kind, frozenset[str]] = {
    "order": frozenset({"query", "passages"}),
    "pick": frozenset({"query", "passages"}),
    "grade": frozenset({"query", "passage"}),
    "likelihood": frozenset({"query", "passage"}),
    "attend": frozenset({"query", "passages"}),
}
OPTIONAL: Mapping[Kind, frozenset[str]] = {
    "pick": frozenset({"n"}),
    "grade": frozenset({"labels"}),
    "likelihood": frozenset({"examples"}),
}

# What an expression in a template can raise; a loop too long for the sandbox is an OverflowError.
_RENDERING = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Passage:
    """A passage as a template sees it: its number (from 1), its letter and its text."""

    number: int
    text: str

    @property
    def letter(self) -> str:
        """A for the first of 26 passages."""
        return LETTERS[self.number - 1]

    def __str__(self) -> str:
        return self.text


class Turn(BaseModel):
    """One chat message of a template."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    text: str


class Sampling(BaseModel):
    """Sampling parameters of a template; the token limit grows with the documents shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_tokens: int = Field(default=1, ge=1)
    max_tokens_per_document: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    stop: tuple[str, ...] = ()


class Template(BaseModel):
    """A checked prompt template.

    Chat templates fill `messages`; plain ones fill `text`. Likelihood templates end where the
    query would begin and give it as `target`. `inputs` names what a write template is filled with,
    or which of query and passage a grade is about that is no judgement of relevance.
    Passages are cut to `passage_words` and `passage_tokens`, and `truncation` says which part of a
    long one is kept; a template that gives neither limit cuts to `PASSAGE_WORDS`.
    `cases` says whether the labels of a grade are read in other cases too.
    `reader` says how a ranking is read: `anchored` takes only numbers that stand in a ranking,
    `digits` any number anywhere, as most published rerankers do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    ask: Kind
    description: str
    source: str = ""
    text: str = ""
    messages: tuple[Turn, ...] = ()
    target: str = ""
    labels: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    cases: bool = True
    inputs: tuple[str, ...] = ()
    passage_words: int | None = Field(default=None, ge=1)
    passage_tokens: int | None = Field(default=None, ge=1)
    truncation: Truncation = "head"
    keep: Literal["text", "line"] = "text"
    reader: Literal["anchored", "digits"] = "anchored"
    params: Sampling = Sampling()
    name: str = ""
    sha256: str = ""

    @property
    def limits(self) -> Limits:
        """How long a passage may be."""
        if self.passage_words is None and self.passage_tokens is None:
            return Limits(PASSAGE_WORDS, None, self.truncation)
        return Limits(self.passage_words, self.passage_tokens, self.truncation)

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, ...]:
        return tuple(_ENVIRONMENT.from_string(text) for text in (*self._texts, self.target))

    def fill(self, values: Mapping[str, Any]) -> tuple[list[str], str]:
        """The texts with the values in their places, one per message, and the target.

        Raises `InputError` for an expression that fails or reaches for Python internals.
        """
        try:
            *texts, target = [compiled.render(values) for compiled in self._compiled]
        except _RENDERING as error:
            raise InputError(f"prompt {self.name!r} cannot be filled: {error}") from error
        return [text.strip("\n") for text in texts], target

    @property
    def _texts(self) -> tuple[str, ...]:
        return tuple(turn.text for turn in self.messages) if self.messages else (self.text,)

    def check(self, path: Path) -> None:
        """Raise `InputError` unless the placeholders and the parts fit the kind of ask."""
        if bool(self.text) == bool(self.messages):
            raise InputError("a template has either `text` or `messages`", path=path)
        if (self.ask == "likelihood") != bool(self.target):
            raise InputError("`target` belongs to likelihood templates, all of them", path=path)
        used = self._placeholders(path, *self._texts, self.target)
        if (self.ask == "grade") != (bool(self.labels) or "labels" in used):
            raise InputError("`labels` belong to grade templates, all of them", path=path)
        if self.ask == "write" and not self.inputs:
            raise InputError("`inputs` belong to write templates, all of them", path=path)
        if self.inputs and not (self.ask == "write" or set(self.inputs) <= self._graded):
            raise InputError("`inputs` are for texts, and for grades `query`, `passage`", path=path)
        self._check_labels(path)
        expected = frozenset(self.inputs) or PLACEHOLDERS[self.ask]
        if not expected <= used <= expected | OPTIONAL.get(self.ask, frozenset()):
            raise InputError(
                f"the template uses {sorted(used)}",
                path=path,
                remedy=f"a template for `{self.ask}` uses exactly {sorted(expected)}",
            )
        if self.messages and all(turn.role != "user" for turn in self.messages):
            raise InputError("no message has the role `user`", path=path)
        if self.target and "query" in self._placeholders(path, *self._texts):
            raise InputError("the query stands before `target` and gives it away", path=path)
        if self.target and "passage" in self._placeholders(path, self.target):
            raise InputError("`target` is the query alone, without the passage", path=path)
        if self.ask != "write":
            self._try(path)

    @property
    def _graded(self) -> frozenset[str]:
        return PLACEHOLDERS["grade"] if self.ask == "grade" else frozenset()

    def _try(self, path: Path) -> None:
        """Fill with stand-ins, so that a failing expression is found before anything is paid."""
        passages = (Passage(1, "a passage"), Passage(2, "a passage"))
        try:
            self.fill(
                {
                    "query": "a query",
                    "passage": "a passage",
                    "passages": passages,
                    "n": 1,
                    "labels": tuple(self.labels) or ("1", "0"),
                    "examples": (("a document", "a query"),),
                }
            )
        except InputError as error:
            raise InputError(str(error), path=path) from error

    def _check_labels(self, path: Path) -> None:
        """Every label needs forms of its own: a shared one would count for both."""
        if self.labels and len(self.labels) < 2:
            raise InputError("`labels` needs two labels or more", path=path)
        owners: dict[str, str] = {}
        for label, forms in self.labels.items():
            if not forms or not all(form.strip() for form in forms):
                raise InputError(f"label {label!r} has no text", path=path)
            for form in forms:
                owner = owners.setdefault(form.strip().casefold(), label)
                if owner != label:
                    problem = f"labels {owner!r} and {label!r} share the form {form!r}"
                    raise InputError(problem, path=path)

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """The placeholders that the texts use."""
        return self._placeholders(Path(self.name), *self._texts, self.target)

    def _placeholders(self, path: Path, *texts: str) -> frozenset[str]:
        try:
            return frozenset().union(
                *(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) for text in texts)
            )
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"not a valid template: {error}", path=path) from error


def folder() -> Path:
    """Where the templates that come with llmrank are: in the wheel, or beside the package."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "prompts"


def names() -> list[str]:
    """Names of the templates that come with llmrank."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def path_of(name: str | Path) -> Path:
    """The file of a template: a path that ends in .toml as it is, else by name."""
    path = Path(name)
    if path.suffix == ".toml":
        return path
    if not (folder() / f"{name}.toml").is_file():
        raise SpecError(f"no prompt named {name!r}; there are: {', '.join(names())}")
    return folder() / f"{name}.toml"


def load(name: str | Path) -> Template:
    """Load and check a template, by the name of one that comes with llmrank or by path."""
    path = path_of(name)
    try:
        raw = path.read_bytes()
        content = tomllib.loads(raw.decode())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the prompt: {error}", path=path) from error
    derived: dict[str, Any] = {"name": path.stem, "sha256": hashlib.sha256(raw).hexdigest()}
    if given := sorted(derived.keys() & content.keys()):
        raise InputError(f"`{given[0]}`: not for a prompt file to say", path=path)
    try:
        template = Template(**content, **derived)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"`{place}`: {first['msg']}", path=path) from error
    template.check(path)
    return template
