"""What the indexes share: the order of their hits, their checks, and their folder on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrank.errors import InputError
from llmrank.types import Document

Scored = tuple[str, float]
T = TypeVar("T")
N = TypeVar("N", bound=np.generic)

FORMAT = 1
_MANIFEST = "index.json"
_IDS = "ids.json"


def best_first(items: Iterable[Scored]) -> list[Scored]:
    """Sort by score, then by id, both falling: the order in which trec_eval reads a run."""
    return sorted(items, key=lambda item: (item[1], item[0]), reverse=True)


def top(
    scores: NDArray[np.float32], positions: NDArray[np.intp], ids: Sequence[str], k: int
) -> list[Scored]:
    """The k best of the documents at `positions`, `scores[i]` belonging to `positions[i]`."""
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        scores, positions = scores[kept], positions[kept]
    names = map(ids.__getitem__, positions.tolist())
    # As `best_first`; most of the time of a fast search goes into this.
    ranked = sorted(zip(scores.tolist(), names, strict=True), reverse=True)
    return [(name, score) for score, name in ranked[:k]]


def check_depth(k: int) -> None:
    """InputError unless at least one hit is asked for."""
    if k < 1:
        raise InputError(f"k is {k}", remedy="ask for at least one document")


def distinct(documents: Iterable[Document]) -> Iterator[Document]:
    """Pass documents on; InputError when an id comes a second time."""
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise InputError(f"document {document.id!r} occurs twice in the corpus")
        seen.add(document.id)
        yield document


def once_each(documents: Iterable[Document]) -> Iterator[Document]:
    """Pass distinct documents on; InputError as `distinct` says, or when there is none."""
    document = None
    for document in distinct(documents):
        yield document
    if document is None:
        raise InputError("the corpus has no documents")


def places(ids: Sequence[str], numbers: Mapping[str, int]) -> list[int]:
    """Where documents stand among all of an index; InputError for an unknown one."""
    try:
        return [numbers[name] for name in ids]
    except KeyError as error:
        raise InputError(f"document {error.args[0]!r} is not in the index") from None


class Stored(NamedTuple):
    """A folder as read: where it is, its description and the ids of its documents in order."""

    folder: Path
    manifest: dict[str, Any]
    ids: tuple[str, ...]

    def value(self, name: str, kind: type[T]) -> T:
        """One entry of the description; InputError where it is missing or of another type."""
        value = self.manifest.get(name)
        if not isinstance(value, kind):
            raise InputError(f"{name!r} is missing or wrong", path=self.folder / _MANIFEST)
        return value

    def array(self, name: str, dtype: type[N], *, axes: int = 1) -> NDArray[N]:
        """A memory-mapped array; InputError where it cannot be read or is of another kind."""
        path = self.folder / f"{name}.npy"
        try:
            array: NDArray[N] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot be read: {error}", path=path) from error
        if array.dtype != dtype or array.ndim != axes:
            raise InputError(f"holds {array.ndim} axes of {array.dtype}", path=path)
        return array

    def strings(self, name: str) -> list[str]:
        """A list of strings kept as JSON; InputError where it is something else."""
        return _read_strings(self.folder / f"{name}.json")


def digest(ids: Sequence[str]) -> str:
    """The sha256, in hexadecimal, of the document ids in their order, written as JSON."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def write(
    folder: Path, manifest: dict[str, Any], ids: Sequence[str], fill: Callable[[Path], None]
) -> None:
    """Write an index at once or not at all; `fill` is given the new folder to add its files to.

    An index that stands there is replaced; InputError where the folder holds anything else.
    """
    folder = folder.resolve()
    _check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    described = {"format": FORMAT, **manifest, "documents": len(ids), "ids_sha256": digest(ids)}
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        write_json(new / _IDS, list(ids))
        write_json(new / _MANIFEST, described)
        fill(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise


def read(folder: Path, kind: str, version: int = FORMAT) -> Stored:
    """Read and check the description and the ids; InputError names what is wrong.

    `version` is the format that this kind of index is written in.
    """
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "build the index and save it to this folder"
        raise InputError(f"there is no {kind} index here", path=folder, remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise InputError(f"does not describe a {kind} index", path=path)
    if manifest.get("format") != version:
        found = manifest.get("format")
        message = f"format {found!r} is not the format {version} of this version"
        raise InputError(message, path=path, remedy="remove it and build the index again")
    stored = Stored(folder, manifest, tuple(_read_strings(folder / _IDS)))
    if manifest.get("documents") != len(stored.ids) or manifest.get("ids_sha256") != digest(
        stored.ids
    ):
        raise InputError("the ids are not those that were indexed", path=folder / _IDS)
    return stored


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError("is a file, an index needs a folder", path=folder)
    if any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise InputError("holds something else than an index", path=folder, remedy="name another")


def _read_strings(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from error
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError("is not a list of strings", path=path)
    return values
