"""The vectors of an index while it is built: a file that grows, and how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import InputError
from llmrank.types import Document

VECTORS = "vectors.npy"
_PROGRESS = "progress.jsonl"
_HEADER = 128  # bytes of the .npy header; numpy leaves room there for any number of rows


class _Mark(NamedTuple):
    """So many documents are embedded; `digest` is that of their ids and texts.

    The line that says so ends at the byte `end` of the progress file.
    """

    documents: int
    digest: str
    end: int


_START = _Mark(0, "", 0)


class Growing:
    """A folder with the vectors of the documents so far; a second process is refused.

    A line of the progress file is written after the vectors that it counts have reached the disk,
    so whatever a process that was killed left behind it counts only what is there.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.ids: list[str] = []
        self._folder, self._model = folder, model
        self._digest = hashlib.sha256()
        self._dimensions = 0
        self._kept = 0

    def __enter__(self) -> Growing:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._progress: IO[bytes] = (self._folder / _PROGRESS).open("ab+")
        try:
            _lock(self._progress, self._folder)
            self._marks = self._read()
        except BaseException:
            self._progress.close()
            raise
        (self._folder / VECTORS).touch()
        self._vectors: IO[bytes] = (self._folder / VECTORS).open("rb+")
        # What was written after the last mark is cut off.
        self._progress.truncate(self._marks[-1].end if self._marks else 0)
        rows = self._marks[-1].documents if self._marks else 0
        self._vectors.truncate(_HEADER + 4 * self._dimensions * rows if rows else 0)
        self._vectors.seek(0, os.SEEK_END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._vectors.close()
        self._progress.close()
        if kind is None or not (self._kept or self._marks):
            for name in (VECTORS, _PROGRESS):
                (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def beyond(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass over the documents whose vectors are there already, and give the others.

        InputError where the first documents are not those whose vectors are there.
        """
        rest = iter(documents)
        for mark in self._marks:
            group = list(islice(rest, mark.documents - self._kept))
            for document in group:
                self._note(document)
            if self._digest.hexdigest() != mark.digest:
                raise InputError(
                    f"holds vectors of other documents than those given ({self._kept} agree)",
                    path=self._folder,
                    remedy="go on with those documents, or remove this folder",
                )
            self.ids += [document.id for document in group]
            self._kept = mark.documents
        yield from rest

    def add(self, documents: Sequence[Document], vectors: NDArray[np.float32]) -> None:
        """Append the vectors of the next documents; InputError where their shape is not due."""
        expected = (len(documents), self._dimensions or vectors.shape[1])
        if vectors.shape != expected:
            raise InputError(f"vectors of shape {vectors.shape} came where {expected} was due")
        if not self._kept:
            self._dimensions = vectors.shape[1]
            self._write_header(0)
            self._log({"model": self._model, "dimensions": self._dimensions})
        for document in documents:
            self._note(document)
        self._vectors.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        _to_disk(self._vectors)
        self.ids += [document.id for document in documents]
        self._kept += len(documents)
        self._log([self._kept, self._digest.hexdigest()])

    def finish(self) -> NDArray[np.float32]:
        """Write the number of vectors where it belongs; all of them, memory-mapped."""
        self._write_header(self._kept)
        _to_disk(self._vectors)
        found: NDArray[np.float32] = np.load(self._folder / VECTORS, mmap_mode="r")
        return found

    def hand_over(self, folder: Path) -> None:
        """Move the vectors into the folder of a whole index."""
        self._vectors.close()
        (self._folder / VECTORS).rename(folder / VECTORS)

    def _note(self, document: Document) -> None:
        self._digest.update(json.dumps([document.id, document.contents]).encode())

    def _read(self) -> list[_Mark]:
        """How far the vectors came that are there; from a line on that is none nothing counts."""
        self._progress.seek(0)
        marks: list[_Mark] = []
        first = self._progress.readline()
        match _parsed(first):
            case {"model": str(model), "dimensions": int(dimensions)} if dimensions > 0:
                end = len(first)
            case _:
                return []
        for line in self._progress:
            end += len(line)
            match _parsed(line):
                case [int(documents), str(digest)] if documents > (marks or [_START])[-1].documents:
                    marks.append(_Mark(documents, digest, end))
                case _:
                    break
        if model != self._model:
            raise InputError(
                f"holds a part of an index by {model!r}, not by {self._model!r}",
                path=self._folder,
                remedy="go on with that model, or remove this folder",
            )
        row = 4 * dimensions
        path = self._folder / VECTORS
        whole = (path.stat().st_size - _HEADER) // row if path.exists() else 0
        found = [mark for mark in marks if mark.documents <= whole]
        self._dimensions = dimensions if found else 0
        return found

    def _write_header(self, rows: int) -> None:
        self._vectors.seek(0)
        described = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._dimensions)}
        np.lib.format.write_array_header_1_0(self._vectors, described)
        if self._vectors.tell() != _HEADER:
            raise RuntimeError(f"the header of {VECTORS} takes {self._vectors.tell()} bytes")

    def _log(self, line: object) -> None:
        self._progress.write(json.dumps(line).encode() + b"\n")
        _to_disk(self._progress)


def _parsed(line: bytes) -> object:
    """What a line of the progress file says; None where it was cut off or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _lock(file: IO[bytes], folder: Path) -> None:
    """Keep other processes out until the file is closed, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = "another process builds an index here"
        raise InputError(message, path=folder, remedy="wait for it") from None
