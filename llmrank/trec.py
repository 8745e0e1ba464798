"""Corpora, queries, judgements and runs, read from and written to files one line at a time.

A source is a path or `-` for standard input; gzip is recognised by its first bytes. Lines are
UTF-8 (a byte order mark and CRLF are accepted), blank ones are skipped, and whatever cannot be read
is an `InputError` with file and line. Readers are lazy: files are opened and errors raised while
iterating.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import secrets
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from hashlib import blake2b
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import jsonlines
import numpy as np

from llmrank.errors import InputError, MissingExtra
from llmrank.types import Document, Query

Source = str | Path
Record = dict[str, object]
Hits = tuple[tuple[str, float], ...]

_GZIP_MAGIC = b"\x1f\x8b"
_IR_DATASETS = "ir_datasets:"
_FLOAT32_MAX = 3.4028234663852886e38

_DOCUMENT_IDS = ("_id", "id", "docid", "doc_id")
_DOCUMENT_TEXTS = ("text", "contents", "passage")
_DOCUMENT_LAYOUTS = (("_id", "text"), ("_id", "title", "text"))
_QUERY_IDS = ("_id", "id", "qid", "query_id")
_QUERY_TEXTS = ("text", "query")
_QUERY_LAYOUTS = (("_id", "text"),)
_BEIR_QRELS_HEADER = ["query-id", "corpus-id", "score"]


class Line(NamedTuple):
    """A decoded line without its end, its number (from 1) and the file it stands in."""

    number: int
    text: str
    path: str

    def error(self, message: str, remedy: str = "") -> InputError:
        """The error to raise for this line."""
        return InputError(message, path=self.path, line=self.number, remedy=remedy)


class RunLine(NamedTuple):
    """What counts in a line of a run; its second column and its rank are not kept."""

    query_id: str
    doc_id: str
    score: float
    tag: str


# ---- lines ----


@contextmanager
def _raw(source: Source) -> Iterator[io.BufferedReader[Any]]:
    if str(source) != "-":
        with Path(source).open("rb") as file:
            yield file
        return
    reader = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
    try:
        yield reader
    finally:
        reader.detach()  # standard input stays open for its owner


@contextmanager
def _unpacked(source: Source) -> Iterator[io.BufferedReader[Any]]:
    with _raw(source) as raw:
        if raw.peek(2)[:2] == _GZIP_MAGIC:
            with gzip.GzipFile(fileobj=raw) as packed:
                yield io.BufferedReader(cast(io.RawIOBase, packed))
        else:
            yield raw


def _decode(raw: bytes, number: int, path: str) -> str:
    if number == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        message = f"byte 0x{raw[error.start]:02x} at position {error.start + 1} is not UTF-8"
        remedy = "convert the file, for example: iconv -f latin1 -t utf-8"
        raise InputError(message, path=path, line=number, remedy=remedy) from None


def read_lines(source: Source) -> Iterator[Line]:
    """Yield the lines that are not blank; a missing, torn or non-UTF-8 file is an InputError."""
    path = "<stdin>" if str(source) == "-" else str(source)
    number = 0
    try:
        with _unpacked(source) as stream:
            for number, raw in enumerate(stream, 1):
                text = _decode(raw, number, path)
                if text and not text.isspace():
                    yield Line(number, text, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # Decompression runs one buffer ahead of the lines.
        message = f"the gzip data is torn or damaged, here or soon after: {error}"
        raise InputError(message, path=path, line=number + 1) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", path=path) from error


@contextmanager
def rereadable(source: Source) -> Iterator[Source]:
    """Give a source that may be read twice: standard input and pipes go to a temporary file."""
    if str(source) != "-" and not Path(source).is_fifo():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="llmrank-") as folder:
        copy = Path(folder) / "stdin"
        with _raw(source) as raw, copy.open("wb") as out:
            shutil.copyfileobj(raw, out)
        yield copy


@contextmanager
def _replacing(target: Source) -> Iterator[IO[bytes]]:
    """Open a sibling of `target` that takes its place if all goes well and vanishes if not."""
    if str(target) == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target).resolve()
    # Renaming onto a device such as /dev/null would turn it into a file.
    is_device = path.exists() and not path.is_file()
    draft = path if is_device else path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        raw = draft.open("wb")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", path=target) from error
    try:
        with raw, _packer(raw) if path.suffix == ".gz" else raw as stream:
            yield cast(IO[bytes], stream)
        if not is_device:
            draft.replace(path)
    finally:
        if not is_device:
            draft.unlink(missing_ok=True)


def _packer(raw: IO[bytes]) -> gzip.GzipFile:
    # No name and no time in the header, so that equal contents are equal files.
    return gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0)


# ---- JSON lines ----


def _parse_object(line: Line) -> Record:
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise line.error(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise line.error(f"expected a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(source: Source) -> Iterator[Record]:
    """Yield one JSON object per line; anything else is an InputError with file and line."""
    return map(_parse_object, read_lines(source))


def _json_bytes(encode: Callable[[object], str], record: object) -> bytes:
    # Only lone surrogates cannot be encoded, and their backslash form is their JSON escape.
    return encode(record).encode("utf-8", "backslashreplace")


def write_jsonl(target: Source, records: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, all or nothing; `-` is standard output, `.gz` compresses.

    A record that JSON cannot hold (NaN, infinity, an unknown type) is an InputError.
    """
    dumps = partial(_json_bytes, json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode)
    with _replacing(target) as stream, jsonlines.Writer(stream, dumps=dumps) as writer:
        for number, record in enumerate(records, 1):
            try:
                writer.write(record)
            except (TypeError, ValueError) as error:
                message = f"this record cannot be written as JSON: {error}"
                raise InputError(message, path=target, line=number) from error


# ---- corpora and queries ----


def _inside(source: Source, name: str) -> Source:
    """The file `name` (or its .gz) when the source is a folder, else the source itself."""
    folder = Path(source)
    if str(source) == "-" or not folder.is_dir():
        return source
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    message = f"this folder holds neither {name} nor {name}.gz"
    raise InputError(message, path=folder, remedy="name the file itself")


def _is_ir_dataset(source: Source) -> bool:
    return str(source).startswith(_IR_DATASETS)


def _ir_dataset(source: Source, part: str) -> Any:  # noqa: ANN401 - the library has no types
    name = str(source).removeprefix(_IR_DATASETS)
    try:
        library = import_module("ir_datasets")
    except ImportError as error:
        raise MissingExtra("ir_datasets corpora", "data") from error
    try:
        dataset = library.load(name)
    except KeyError:
        raise InputError(f"ir_datasets knows no data set named {name!r}") from None
    if not getattr(dataset, f"has_{part}")():
        raise InputError(f"the ir_datasets data set {name!r} has no {part}")
    return dataset


def _parse_columns(names: tuple[str, ...], line: Line) -> Record:
    columns = line.text.split("\t")
    if len(columns) != len(names):
        raise line.error(f"found {len(columns)} columns where the first line has {len(names)}")
    return dict(zip(names, columns, strict=True))


def _parser(first: Line, layouts: tuple[tuple[str, ...], ...]) -> Callable[[Line], Record]:
    if first.text.lstrip().startswith(("{", "[")):
        return _parse_object
    width = first.text.count("\t") + 1
    for names in layouts:
        if len(names) == width:
            return partial(_parse_columns, names)
    wanted = " or ".join("<TAB>".join(names) for names in layouts)
    raise first.error(f"expected a JSON object or {wanted}, found {width} tab-separated columns")


def _records(source: Source, layouts: tuple[tuple[str, ...], ...]) -> Iterator[tuple[Line, Record]]:
    """Records of a JSONL or TSV file; its first line decides which, and how many columns."""
    parse: Callable[[Line], Record] | None = None
    for line in read_lines(source):
        if parse is None:
            parse = _parser(line, layouts)
        yield line, parse(line)


def _pop_first(line: Line, record: Record, keys: tuple[str, ...]) -> object:
    for key in keys:
        if key in record:
            return record.pop(key)
    raise line.error(f"the record has none of the keys {', '.join(keys)}")


def _pop_id(line: Line, record: Record, keys: tuple[str, ...]) -> str:
    value = _pop_first(line, record, keys)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise line.error(f"expected a string or an integer as id, found {value!r}")
    return str(value)


def _as_text(line: Line, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise line.error(f"expected a string as text, found {type(value).__name__}")
    return value


def _document(line: Line, record: Record) -> Document:
    doc_id = _pop_id(line, record, _DOCUMENT_IDS)
    text = _as_text(line, _pop_first(line, record, _DOCUMENT_TEXTS))
    title = _as_text(line, record.pop("title", None))
    metadata = record.get("metadata", {})
    if isinstance(metadata, dict):
        record.pop("metadata", None)
        record = {**metadata, **record}
    return Document(doc_id, text, title, record)


def _documents(source: Source) -> Generator[tuple[Line, Document], None, None]:
    for line, record in _records(_inside(source, "corpus.jsonl"), _DOCUMENT_LAYOUTS):
        yield line, _document(line, record)


def read_corpus(source: Source) -> Iterator[Document]:
    """Yield documents from JSONL, TSV, a BEIR folder or `ir_datasets:NAME`.

    JSON keys: `_id` (or id, docid, doc_id), `text` (or contents, passage), `title` if there is one;
    what else a record holds, and what its object `metadata` holds, becomes the metadata. TSV is
    `id<TAB>text` or `id<TAB>title<TAB>text` throughout, without header or quotes. Null and empty
    texts give documents with an empty text. Repeated ids are not looked for, because that would
    need memory for every id; `read_texts` does so for the ids it is asked for.
    """
    if _is_ir_dataset(source):
        for doc in _ir_dataset(source, "docs").docs_iter():
            yield Document(doc.doc_id, doc.default_text())
    else:
        for _, document in _documents(source):
            yield document


def read_texts(source: Source, wanted: Collection[str]) -> dict[str, Document]:
    """Documents of the wanted ids, in one pass that ends when all are found.

    Ids that the corpus lacks are absent from the answer. An id that comes twice before the pass
    ends is skipped when title and text are the same, else it is an InputError with both lines.
    """
    if _is_ir_dataset(source):
        found = _ir_dataset(source, "docs").docs_store().get_many(list(wanted))
        return {doc_id: Document(doc_id, doc.default_text()) for doc_id, doc in found.items()}
    missing = set(wanted)
    kept: dict[str, Document] = {}
    lines: dict[str, int] = {}
    with closing(_documents(source)) as documents:
        while missing and (entry := next(documents, None)):
            line, document = entry
            if document.id in missing:
                missing.remove(document.id)
                kept[document.id], lines[document.id] = document, line.number
            elif document.id in kept and kept[document.id] != document:
                raise _differs(line, f"document {document.id!r}", lines[document.id])
    return kept


def _differs(line: Line, what: str, first: int) -> InputError:
    return line.error(
        f"{what} stands on line {first} too, with another text", "keep one line for each id"
    )


def read_queries(source: Source) -> Iterator[Query]:
    """Yield queries from JSONL, TSV (`id<TAB>text`), a BEIR folder or `ir_datasets:NAME`.

    JSON keys: `_id` (or id, qid, query_id) and `text` (or query). An id that comes back is skipped
    when its text is the same, else it is an InputError with both lines; for that a digest of every
    text is kept.
    """
    if _is_ir_dataset(source):
        for item in _ir_dataset(source, "queries").queries_iter():
            yield Query(item.query_id, item.default_text())
        return
    seen: dict[str, tuple[int, bytes]] = {}
    for line, record in _records(_inside(source, "queries.jsonl"), _QUERY_LAYOUTS):
        query_id = _pop_id(line, record, _QUERY_IDS)
        text = _as_text(line, _pop_first(line, record, _QUERY_TEXTS))
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first, before = seen.setdefault(query_id, (line.number, digest))
        if before != digest:
            raise _differs(line, f"query {query_id!r}", first)
        if first == line.number:
            yield Query(query_id, text)


# ---- judgements ----


def read_qrels(source: Source) -> dict[str, dict[str, int]]:
    """Grades by query id and document id, all in memory.

    Reads TREC qrels (query, iteration, document, grade), BEIR qrels (tab-separated, with the header
    `query-id corpus-id score`), a BEIR folder (its test split) and `ir_datasets:NAME`. A judgement
    that comes twice with different grades is an InputError.
    """
    if _is_ir_dataset(source):
        return cast(dict[str, dict[str, int]], _ir_dataset(source, "qrels").qrels_dict())
    qrels: dict[str, dict[str, int]] = {}
    is_beir: bool | None = None
    for line in read_lines(_inside(source, "qrels/test.tsv")):
        if is_beir is None:
            is_beir = line.text.split() == _BEIR_QRELS_HEADER
            if is_beir:
                continue
        query_id, doc_id, grade = _judgement(line, is_beir=is_beir)
        before = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
        if before != grade:
            message = f"document {doc_id!r} has grade {grade} for query {query_id!r}"
            raise line.error(f"{message}, but {before} on an earlier line")
    return qrels


def _judgement(line: Line, *, is_beir: bool) -> tuple[str, str, int]:
    columns = line.text.split("\t") if is_beir else line.text.split()
    if is_beir and len(columns) != 3:
        raise line.error(f"expected query<TAB>document<TAB>grade, found {len(columns)} columns")
    if not is_beir and len(columns) != 4:
        raise line.error(
            f"expected 4 columns (query, iteration, document, grade), found {len(columns)}",
            "three columns need the header query-id<TAB>corpus-id<TAB>score",
        )
    try:
        return columns[0], columns[-2], int(columns[-1])
    except ValueError:
        raise line.error(f"expected an integer as grade, found {columns[-1]!r}") from None


# ---- runs ----


def write_qrels(target: Source, judgements: Iterable[tuple[str, str, int]]) -> None:
    """Write (query id, document id, grade) in BEIR's layout, all or nothing."""
    with _replacing(target) as stream:
        stream.write(b"query-id\tcorpus-id\tscore\n")
        for query, document, grade in judgements:
            stream.write(f"{query}\t{document}\t{grade}\n".encode("utf-8", "surrogatepass"))


def read_run_lines(source: Source) -> Iterator[tuple[Line, RunLine]]:
    """Yield the lines of a TREC run as they stand, each checked for itself."""
    for line in read_lines(source):
        columns = line.text.split()
        if len(columns) != 6:
            wanted = "expected 6 columns (query Q0 document rank score tag)"
            raise line.error(f"{wanted}, found {len(columns)}", "ids and tags hold no white space")
        query_id, _, doc_id, _, score, tag = columns
        yield line, RunLine(query_id, doc_id, _score(line, score), tag)


def _score(line: Line, text: str) -> float:
    try:
        score = math.nan if "_" in text else float(text)  # float() reads 1_0 as 10
    except ValueError:
        score = math.nan
    if not abs(score) <= _FLOAT32_MAX:  # also true of NaN
        raise line.error(f"expected a finite number (float32) as score, found {text!r}")
    return score


def _query_of(entry: tuple[Line, RunLine]) -> str:
    return entry[1].query_id


def read_run(source: Source, depth: int | None = None) -> Iterator[tuple[str, Hits]]:
    """Yield (query id, ((document id, score), ...)) for one query at a time, best first.

    Hits stand in trec_eval's order: score as float32 descending, then document id descending; the
    scores given back are those of the file and the rank column is ignored. `depth` keeps that many
    of each query. Memory holds one query and the ids of those before. A query that comes back
    after another one began, and a document that stands twice in a query, are InputErrors.
    """
    if depth is not None and depth < 1:
        raise InputError(f"expected a depth of at least 1, found {depth}")
    seen: set[str] = set()
    for query_id, entries in groupby(read_run_lines(source), _query_of):
        scores = _collect(entries, seen)
        seen.add(query_id)
        order = sorted(zip(array("f", scores.values()), scores, strict=True), reverse=True)
        yield query_id, tuple((doc_id, scores[doc_id]) for _, doc_id in order[:depth])


def _collect(entries: Iterable[tuple[Line, RunLine]], seen: Collection[str]) -> dict[str, float]:
    """Scores of one query's documents in file order."""
    scores: dict[str, float] = {}
    numbers: dict[str, int] = {}
    for line, hit in entries:
        if hit.query_id in seen:
            raise line.error(
                f"query {hit.query_id!r} comes back after another query began",
                "group the lines by query first: sort -s -k1,1",
            )
        if hit.doc_id in scores:
            where = f"lines {numbers[hit.doc_id]} and {line.number}"
            raise line.error(
                f"document {hit.doc_id!r} stands twice in query {hit.query_id!r}: {where}"
            )
        scores[hit.doc_id], numbers[hit.doc_id] = hit.score, line.number
    return scores


def write_run(
    target: Source, groups: Iterable[tuple[str, Sequence[tuple[str, float]]]], *, tag: str
) -> None:
    """Write a TREC run, all or nothing, from (query id, (document id, score) best first) groups.

    The given order is the ranking, with ranks from 1. Scores are written as given where a query's
    are finite and strictly decreasing as float32; tied ones are lowered by the least that float32
    can tell. Where they rise or are not finite, number of hits - rank + 1 is written for the whole
    query. White space in the tag becomes `_`. `-` is standard output, written query by
    query; `.gz` compresses. A query or a document given twice and an id that is empty or holds
    white space are InputErrors, and leave what stood at `target` before.
    """
    label = "_".join(tag.split()) or "llmrank"
    seen: set[str] = set()
    with _replacing(target) as stream:
        for query_id, hits in groups:
            if query_id in seen:
                raise InputError(f"query {query_id!r} is given twice", path=target)
            seen.add(query_id)
            try:
                stream.write(_run_text(query_id, hits, label).encode())
            except ValueError as error:
                raise InputError(f"query {query_id!r}: {error}", path=target) from error


def _run_text(query_id: str, hits: Sequence[tuple[str, float]], tag: str) -> str:
    """The lines of one query; a ValueError says what they cannot hold."""
    doc_ids = [doc_id for doc_id, _ in hits]
    for value in (query_id, *doc_ids):
        if value.split() != [value]:
            raise ValueError(f"the id {value!r} is empty or holds white space")
    if len(set(doc_ids)) < len(doc_ids):
        twice = next(doc_id for doc_id in doc_ids if doc_ids.count(doc_id) > 1)
        raise ValueError(f"document {twice!r} is given twice")
    scores = _distinct([float(score) for _, score in hits])
    rows = enumerate(zip(doc_ids, scores, strict=True), 1)
    return "".join(f"{query_id} Q0 {doc} {rank} {score!r} {tag}\n" for rank, (doc, score) in rows)


def _distinct(scores: list[float]) -> list[float]:
    """The scores, tied ones lowered by the least that float32 can tell; else places from the end.

    Places stand in where a score rises down the ranking or is not finite.
    """
    narrow = array("f", scores)
    places = [float(left) for left in range(len(scores), 0, -1)]
    if not all(map(math.isfinite, narrow)) or any(b > a for a, b in pairwise(narrow)):
        return places
    lowered = list(scores)
    for i in range(1, len(scores)):
        if narrow[i] >= narrow[i - 1]:
            with np.errstate(over="ignore"):
                below = np.nextafter(np.float32(narrow[i - 1]), np.float32(-np.inf))
            narrow[i] = lowered[i] = float(below)
    return lowered if all(map(math.isfinite, lowered[-1:])) else places
