"""Errors that a user can act on, each with the exit code that the command line returns for it.

LlmrankError
├── InputError        bad data in a file, a value or an option (3)
│   └── TooLong       a prompt that the model cannot take, however far its passages are cut (3)
├── SpecError         a method, prompt or model name that cannot be read (3)
├── MissingExtra      an optional dependency is not installed (4)
├── CapabilityError   the backend cannot answer this kind of ask (4)
├── BackendError      the backend cannot be used at all: wrong key, no server, unknown model (4)
├── TooManyFailures   more answers failed than the run allows (5)
└── StoppedAtCap      a cap was reached; what was finished is kept (6)
"""

from __future__ import annotations

from pathlib import Path


class LlmrankError(Exception):
    """Base of every error that llmrank raises on purpose; `exit_code` is for the command line."""

    exit_code = 1


class InputError(LlmrankError):
    """Bad data, with the place where it stands and, where one exists, the remedy."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        remedy: str = "",
    ) -> None:
        place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(f"{place}{message}" + (f" ({remedy})" if remedy else ""))
        self.path, self.line, self.remedy = path, line, remedy


class TooLong(InputError):
    """A prompt that does not fit the model's context length, however far its passages are cut."""


class SpecError(LlmrankError):
    """A name of a method, model or prompt that cannot be read."""

    exit_code = 3


class MissingExtra(LlmrankError):
    """An optional dependency is missing; the message says how to install it."""

    exit_code = 4

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'llmrank[{extra}]'")
        self.extra = extra


class CapabilityError(LlmrankError):
    """The backend cannot answer what the method asks; the message names what would work."""

    exit_code = 4


class BackendError(LlmrankError):
    """The backend cannot be used at all, so asking again would not help."""

    exit_code = 4


class TooManyFailures(LlmrankError):
    """A larger share of the answers failed than the run allows."""

    exit_code = 5


class StoppedAtCap(LlmrankError):
    """A cap on calls, tokens, money or time was reached before the run was complete."""

    exit_code = 6
