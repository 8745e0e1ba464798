"""The examples of a run written as what trainers read; `synth.exports` has the formats."""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import IO

import llmrank.synth.exports as exports
import llmrank.trec as trec
from llmrank.api.runs import fingerprint
from llmrank.errors import InputError
from llmrank.plan import Order
from llmrank.prompts import PromptSet
from llmrank.store import MANIFEST
from llmrank.synth.exports import Choice, Format, Lack, Line, Listed, Options, Row, Sample, Text
from llmrank.types import Document, Query

EXAMPLES = "examples.jsonl"
CONTENTS = "export.manifest"
"""What an export says of itself. No .json: loaders that take a whole folder would read it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: examples, the rows of each file, and how many it left out, and why.

    `kept` examples are in the splits asked for; `left_out` of them lack what the format needs.
    `unscored` passages of the others were left out because they lack the score. `negatives` is the
    number of them that every row has, or at most has, if there is one.
    """

    format: str
    corpus: str
    kept: int
    examples: int
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    unscored: int
    negatives: int | None
    score: str | None
    scale: str
    seed: int


def export(
    run: str | Path,
    format: str,
    out: str | Path,
    *,
    corpus: str | Path | None = None,
    split: str = exports.TRAIN,
    negatives: int | None = None,
    score: str | None = None,
    scale: exports.Scale = "none",
    seed: int = 0,
) -> Exported:
    """Write the kept examples of a run into a folder, in a format that a trainer reads.

    `split` is one or several with commas. `negatives` is how many of each example are taken, the
    first of them; formats with the same number in every row take by default as many as every
    example that has any has. `score` names the score of the passages that is written, scaled over
    the passages of an example by `scale`; formats that need one take `teacher`. `seed` is that of
    the order in which a ranking format shows passages. Examples are read twice, one at a time;
    memory holds the documents that they name.

    Files appear whole or not at all, and replace those of an earlier export into the same folder.
    An export without rows is an `InputError` that says why.
    """
    form = exports.find(format)
    options = Options(negatives, score, scale, seed)
    exports.check(format, form.needs, options)
    job = _Job(Path(run) / EXAMPLES, form, options, frozenset(split.replace(",", " ").split()))
    folder = _Folder(Path(out))
    survey = _look(job)
    if not survey.examples:
        raise _nothing(job, format, split, survey)
    if form.needs.negatives == "fixed":
        job = replace(job, options=replace(options, negatives=negatives or survey.fewest))
    source = _corpus(Path(run)) if corpus is None else corpus
    texts = _texts(source, survey.wanted)
    told = Exported(
        format=format,
        corpus=str(source),
        kept=survey.kept,
        examples=survey.examples,
        rows={},
        left_out={str(lack): count for lack, count in survey.lacks.items()},
        unscored=survey.unscored,
        negatives=job.options.negatives,
        score=exports.score_of(form.needs, options),
        scale=scale,
        seed=seed,
    )
    rows = folder.fill(_rows(job, texts), {"run": str(run), "split": split, **asdict(told)})
    return replace(told, rows=rows)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, and how."""

    examples: Path
    form: Format
    options: Options
    splits: frozenset[str]


@dataclass(slots=True)
class _Survey:
    """What a first reading finds: how many examples will do, and the documents that they name."""

    kept: int = 0
    examples: int = 0
    unscored: int = 0
    fewest: int | None = None
    lacks: Counter[Lack] = field(default_factory=Counter)
    wanted: set[str] = field(default_factory=set)


def _lines(path: Path) -> Iterator[Line]:
    for line in trec.read_lines(path):
        try:
            yield exports.read(line.text)
        except ValueError as error:
            raise line.error(f"not an example: {error}") from None


def _first_source(line: Line) -> str:
    return line.sources[0].document if line.sources else line.id


def _choices(job: _Job) -> Iterator[tuple[Line, Choice | Lack]]:
    """The kept examples of the splits; those of one document stand together in the file."""
    for _, group in groupby(_lines(job.examples), _first_source):
        members = list(group)
        for line in members:
            if line.kept and line.part in job.splits:
                others = exports.rivals(line, members) if job.form.needs.rivals else ()
                yield line, exports.choose(line, job.form.needs, job.options, others)


def _look(job: _Job) -> _Survey:
    found = _Survey()
    for line, choice in _choices(job):
        found.kept += 1
        if isinstance(choice, Lack):
            found.lacks[choice] += 1
            continue
        found.examples += 1
        found.unscored += choice.unscored
        count = len(choice.negatives)
        found.fewest = count if found.fewest is None else min(found.fewest, count)
        found.wanted.update(p.document for p in choice.passages if p.text is None)
        if job.form.needs.rivals:
            found.wanted.update(line.written_for)
    return found


def _nothing(job: _Job, format: str, split: str, found: _Survey) -> InputError:
    if not found.kept:
        remedy = "llmrank show the run, or name another --split"
        return InputError(f"no kept example in the split {split}", path=job.examples, remedy=remedy)
    why = ", ".join(f"{count} with {lack}" for lack, count in found.lacks.most_common())
    worst = found.lacks.most_common(1)[0][0]
    return InputError(
        f"none of the {found.kept} kept examples can be exported as {format}: {why}",
        path=job.examples,
        remedy=exports.REMEDIES[worst],
    )


def _corpus(run: Path) -> str:
    """The corpus that the manifest of a run names."""
    remedy = "name the corpus with --corpus"
    try:
        manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
        told = manifest["data"]["corpus"]
        name = str(told.get("path") or told["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the manifest names no corpus", path=run / MANIFEST, remedy=remedy
        ) from error
    if not name.startswith("ir_datasets:") and not Path(name).exists():
        message = f"the run was made from the corpus {name}, which is not there"
        raise InputError(message, path=run / MANIFEST, remedy=remedy)
    known = told.get("sha256")
    if known and fingerprint(name, "corpus.jsonl").get("sha256") != known:
        message = f"the corpus {name} is not what it was at the time of the run"
        raise InputError(message, path=run / MANIFEST, remedy=f"{remedy} to take it as it is")
    return name


def _texts(corpus: str | Path, wanted: set[str]) -> Mapping[str, Document]:
    texts = trec.read_texts(corpus, wanted) if wanted else {}
    missing = sorted(wanted - texts.keys())
    if missing:
        message = f"lacks {len(missing)} of the {len(wanted)} documents, such as {missing[0]!r}"
        raise InputError(message, path=corpus, remedy="give the corpus of the run with --corpus")
    return texts


def _rows(job: _Job, texts: Mapping[str, Document]) -> Iterator[Row]:
    numbers: dict[str, int] = {}
    prompts = PromptSet()
    number = 0
    for line, choice in _choices(job):
        if isinstance(choice, Lack):
            continue
        sample = _sample(choice, number, texts, numbers, job)
        if job.form.prompts:
            sample = replace(sample, prompt=_prompt(prompts, sample))
        number += 1
        try:
            yield from job.form.rows(sample)
        except ValueError as error:
            raise InputError(f"example {line.id!r}: {error}", path=job.examples) from error


def _sample(
    choice: Choice, number: int, texts: Mapping[str, Document], numbers: dict[str, int], job: _Job
) -> Sample:
    def text(passage: Listed) -> Text:
        name, label = passage.document, passage.label or 0
        document = texts[name] if passage.text is None else Document(name, passage.text)
        place = numbers.setdefault(name, len(numbers))
        return Text(document, place, label, choice.values.get(name))

    line = choice.line
    shown = line.sources if job.form.needs.rivals else ()
    return Sample(
        id=line.id,
        number=number,
        query=line.query,
        kind=line.kind,
        split=line.part,
        positives=tuple(map(text, choice.positives)),
        negatives=tuple(map(text, choice.negatives)),
        sources=tuple(texts[one.document].contents[one.start : one.end] for one in shown),
        rivals=choice.rivals,
        seed=job.options.seed,
    )


def _prompt(prompts: PromptSet, sample: Sample) -> tuple[Mapping[str, str], ...]:
    """The chat that llmrank itself would send for the order of the shuffled passages."""
    docs = tuple(text.document for text in sample.shuffled)
    request = prompts.render(Order(Query(sample.id, sample.query), docs))
    return tuple(message._asdict() for message in request.messages)


class _Folder:
    """The folder of an export: filled aside, then moved file by file, the contents last."""

    def __init__(self, out: Path) -> None:
        remedy = "choose another --out"
        if out.exists() and not out.is_dir():
            raise InputError("the folder of the export is a file", path=out, remedy=remedy)
        if out.is_dir() and any(out.iterdir()) and not (out / CONTENTS).is_file():
            raise InputError("the folder holds something else", path=out, remedy=remedy)
        self._out = out.resolve()
        self._open: dict[str, IO[bytes]] = {}
        self._written: set[tuple[str, str]] = set()
        self._rows: dict[str, int] = {}

    def fill(self, rows: Iterator[Row], contents: Mapping[str, object]) -> Mapping[str, int]:
        """Write all rows and say what they are, and count those of each file, its head left out.

        Nothing is seen of them before they are all there.
        """
        draft = self._out.with_name(f".{self._out.name}.{secrets.token_hex(4)}.tmp")
        try:
            draft.mkdir(parents=True)
            with ExitStack() as files:
                for row in rows:
                    self._write(row, draft, files)
            told = json.dumps({**contents, "rows": self._rows}, indent=2, ensure_ascii=False)
            (draft / CONTENTS).write_text(told + "\n", encoding="utf-8")
            self._publish(draft)
        except OSError as error:
            message = f"cannot be written: {error.strerror or error}"
            raise InputError(message, path=self._out) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self._rows

    def _write(self, row: Row, draft: Path, files: ExitStack) -> None:
        if row.key and (row.file, row.key) in self._written:
            return
        if row.key:
            self._written.add((row.file, row.key))
        if row.file not in self._open:
            path = draft / row.file
            path.parent.mkdir(exist_ok=True)
            self._open[row.file] = files.enter_context(path.open("wb"))
            self._rows[row.file] = 0
            if row.head:
                self._open[row.file].write(_encoded(row._replace(value=row.head)))
        self._open[row.file].write(_encoded(row))
        self._rows[row.file] += 1

    def _publish(self, draft: Path) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        stale = set(_files(self._out)) - self._rows.keys()
        for name in (*self._rows, CONTENTS):
            (self._out / name).parent.mkdir(exist_ok=True)
            (draft / name).replace(self._out / name)
        for name in stale:
            (self._out / name).unlink(missing_ok=True)


def _files(out: Path) -> list[str]:
    """The files of an earlier export into a folder."""
    try:
        rows = json.loads((out / CONTENTS).read_text(encoding="utf-8"))["rows"]
        return [name for name in rows if (out / name).resolve().is_relative_to(out.resolve())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _encoded(row: Row) -> bytes:
    if row.file.endswith(".tsv") and not isinstance(row.value, Mapping):
        # Columns and lines end where a tab or any line break is: a text keeps its words alone.
        columns = (" ".join(str(column).split()) for column in row.value)
        return ("\t".join(columns) + "\n").encode("utf-8", "replace")
    text = json.dumps(row.value, ensure_ascii=False, allow_nan=False)
    # Only lone surrogates cannot be encoded, and their backslash form is their JSON escape.
    return (text + "\n").encode("utf-8", "backslashreplace")
