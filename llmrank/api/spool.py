"""Documents on their way into a recipe, and the files that hold what is between two steps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llmrank.errors import InputError
from llmrank.report.sample import Reservoir
from llmrank.types import Document

_DRAWN = 2000
"""Documents on the map of topics."""
_IN_NO_QRELS = frozenset("\t\r\n")
"""What parts the columns and the lines of judgements, so no id may hold it."""


class Counted:
    """Documents, counted as they pass, and the ids of as many as a picture can show, drawn."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents
        self._ids = Reservoir[str](_DRAWN, "documents")

    @property
    def count(self) -> int:
        """How many passed."""
        return self._ids.seen

    @property
    def drawn(self) -> list[str]:
        """Ids, every one equally likely: a corpus is often sorted by topic."""
        return self._ids.items

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            self._ids.add(document.id)
            yield document


def named(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents whose ids can stand in judgements; `InputError` at one that cannot."""
    for document in documents:
        if not _IN_NO_QRELS.isdisjoint(document.id):
            told = f"the id {document.id!r} holds a tab or a line break"
            raise InputError(told, remedy="give the document another one")
        yield document


@contextmanager
def between(folder: Path) -> Iterator[Path]:
    """A folder for the files between two steps; what a killed run left there goes too."""
    files = folder / ".steps"
    with _alone(folder):
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        try:
            yield files
        finally:
            shutil.rmtree(files)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """`InputError` where another process has the folder; where files have no locks it is trusted.

    The lock is the system's, so none outlives a killed run.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(number)
        remedy = "wait for it, or choose another --out"
        raise InputError("another run is writing here", path=folder, remedy=remedy) from error
    try:
        yield
    finally:
        os.close(number)


def write_line(stream: TextIO, content: object) -> None:
    """Write something as a line of JSON; every character in it can be encoded."""
    stream.write(json.dumps(content) + "\n")


def read_lines(path: Path) -> Iterator[Any]:
    """What stands in the lines of a file."""
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def as_document(content: tuple[str, str, str]) -> Document:
    """A document from id, text and title."""
    return Document(*content)
