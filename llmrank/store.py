"""The journal of answers and the folder of a run."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmrank.errors import InputError
from llmrank.request import Reply
from llmrank.types import Usage

JOURNAL = "journal.sqlite"
MANIFEST = "manifest.json"
MOST_BESIDE = 32
"""Journals of other runs that a run looks into: each costs a file handle and a look-up."""
_STORED = ("text", "finish", "reasoning", "logprob", "tokens", "model", "seconds", "cut")


class Journal:
    """Every answered request, by content: what was paid for once is never paid for again.

    One SQLite file in WAL mode holding compressed JSON; several processes may use it at once, and
    a process killed at any moment loses at most the answers it had not yet received. `also` names
    other journals to look into when this one has no answer; what is found there is copied here.
    Neither credentials nor headers are stored.
    """

    def __init__(self, path: Path, also: Sequence[Path] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self.folders = tuple(dict.fromkeys(file.parent for file in (path, *also)))
        """Where this journal and the others are, its own first."""
        # SQLite crashes when one thread closes a connection that another is using.
        self._lock = threading.RLock()
        self._db = _open(path)
        found = (_look_into(other) for other in also if other.resolve() != path.resolve())
        self._others = [other for other in found if other is not None]

    def get(self, key: str) -> Reply | None:
        """The reply stored under a key, marked as reused."""
        with self._watched():
            row = _row(self._db, key)
            return self._borrowed(key) if row is None else _decode(row[1])

    def _borrowed(self, key: str) -> Reply | None:
        """The reply another journal has, copied into this one."""
        for other in tuple(self._others):
            try:
                row = _row(other, key)
                reply = None if row is None else _decode(row[1])
            except (sqlite3.Error, _Unreadable):
                # Another run's damaged or locked journal is no reason to stop this one, nor to
                # wait for it again.
                self._others.remove(other)
                other.close()
                continue
            if row is not None:
                self._insert([(key, *row)])
                return reply
        return None

    def put(self, items: Sequence[tuple[str, Mapping[str, object], Reply]]) -> None:
        """Store replies, each with what it was about, in one transaction."""
        self._insert([(key, json.dumps(about), _encode(reply)) for key, about, reply in items])

    def __len__(self) -> int:
        with self._watched():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any], Reply]]:
        """Every key, what its request was about, and the reply."""
        with self._watched():
            cursor = self._db.execute("SELECT key, about, reply FROM answers")
        while True:
            # Not locked while the caller has the items.
            with self._watched():
                rows = cursor.fetchmany(1000)
                items = [(key, json.loads(about), _decode(reply)) for key, about, reply in rows]
            if not items:
                return
            yield from items

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for connection in (self._db, *self._others):
                connection.close()

    def _insert(self, rows: Sequence[tuple[str, str, bytes]]) -> None:
        with self._watched(), self._db:
            self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, _Unreadable) as error:
            raise _damaged(self.path, error) from error


def _row(connection: sqlite3.Connection, key: str) -> tuple[str, bytes] | None:
    found = connection.execute("SELECT about, reply FROM answers WHERE key = ?", (key,))
    row: tuple[str, bytes] | None = found.fetchone()
    return row


def _look_into(path: Path) -> sqlite3.Connection | None:
    """Another run's journal, to be read only; None where there is none."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        return sqlite3.connect(uri, uri=True, timeout=1, check_same_thread=False)
    except sqlite3.Error:
        return None


def _open(path: Path) -> sqlite3.Connection:
    try:
        # Made before SQLite does, whose own files beside it then get the same permissions.
        path.touch(mode=0o600)
        path.chmod(0o600)
        # The engine may run in a thread of its own (notebooks), one thread at a time.
        db = sqlite3.connect(path, timeout=30, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS answers"
            " (key TEXT PRIMARY KEY, about TEXT NOT NULL, reply BLOB NOT NULL) WITHOUT ROWID"
        )
    except (OSError, sqlite3.Error) as error:
        raise _damaged(path, error) from error
    return db


class _Unreadable(Exception):
    """A stored reply is not what was written."""


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"the journal cannot be used: {error}",
        path=path,
        remedy="check free space and permissions; move the file away to start a new one",
    )


def _encode(reply: Reply) -> bytes:
    fields = {name: getattr(reply, name) for name in _STORED}
    fields["label_logprobs"] = dict(reply.label_logprobs)
    fields["usage"] = {name: n for name, n in asdict(reply.usage).items() if n}
    if reply.attention is not None:
        fields["attention"] = list(reply.attention)
    if reply.vectors is not None:
        array = np.ascontiguousarray(reply.vectors, dtype="<f4")
        fields["vectors"] = [list(array.shape), base64.b64encode(array.tobytes()).decode()]
    return zlib.compress(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _decode(blob: bytes) -> Reply:
    try:
        fields = json.loads(zlib.decompress(blob))
        usage = Usage(**fields.pop("usage"))
        if "attention" in fields:
            fields["attention"] = tuple(fields["attention"])
        if "vectors" in fields:
            shape, data = fields["vectors"]
            fields["vectors"] = np.frombuffer(base64.b64decode(data), dtype="<f4").reshape(shape)
        return Reply(**fields, usage=usage, reused=True)
    except (zlib.error, KeyError, TypeError, ValueError) as error:
        raise _Unreadable(f"a stored reply cannot be read: {error}") from error


class RunFolder:
    """One run: `manifest.json`, `run.trec`, `scores.jsonl`, `summary.json` and the journal.

    The folder is readable by its owner alone, as it holds what was sent to the model. One that
    holds something else is refused, as a run replaces files by names that are common.
    """

    def __init__(self, path: Path) -> None:
        remedy = "choose another --out"
        if path.exists() and not path.is_dir():
            raise InputError("the run folder is a file", path=path, remedy=remedy)
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = {inside.name for inside in path.iterdir() if not inside.name.startswith(".")}
        except OSError as error:
            told = error.strerror or str(error)
            raise InputError(f"cannot be a run folder: {told}", path=path, remedy=remedy) from error
        if found and not found & {JOURNAL, MANIFEST}:
            raise InputError("the folder holds something else", path=path, remedy=remedy)
        self.path = path
        self.run = path / "run.trec"
        self.scores = path / "scores.jsonl"

    def journal(self) -> Journal:
        """This run's journal, which also looks into those of the latest runs beside it."""
        return Journal(self.path / JOURNAL, also=beside(self.path))

    def write(self, name: str, content: Mapping[str, object]) -> None:
        """Write one JSON file of the folder, whole or not at all."""
        write_whole(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write one text file of the folder, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, text)

    def check(self, kind: str) -> None:
        """`InputError` unless the folder is new or holds a run of this kind.

        `kind` is what its manifest has a value for: method, expansion or generation.
        """
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read: {error}", path=self.path / MANIFEST) from error
        if not isinstance(manifest, dict) or kind not in manifest:
            raise InputError(
                "the folder holds what another command made",
                path=self.path,
                remedy="choose another --out",
            )


def beside(folder: Path) -> list[Path]:
    """The journals a run in this folder would look into, the latest first."""
    found = folder.resolve().parent.glob(f"*/{JOURNAL}")
    dated = []
    for path in found:
        try:
            dated.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # taken away meanwhile
    return [path for _, path in sorted(dated, reverse=True)[:MOST_BESIDE]]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(text.encode())
    temporary.replace(path)
