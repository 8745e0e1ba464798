"""Recipes run by a session: documents chosen, queries written, and every stage passed in turn."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llmrank.rerank as methods
import llmrank.trec as trec
from llmrank.api.first_stage import SEARCHES
from llmrank.api.runs import fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.api.spool import Counted, as_document, between, named, read_lines, write_line
from llmrank.api.world import Corpus
from llmrank.errors import InputError
from llmrank.plan import (
    Answer,
    Ask,
    Embed,
    Need,
    Plan,
    Write,
    ask,
    need,
    reworked,
    staged,
    together,
)
from llmrank.prompts import PromptSet
from llmrank.report import report
from llmrank.retrieve import distinct
from llmrank.store import RunFolder
from llmrank.synth import Calls, Example, Recipe, Shot, Step, parse
from llmrank.synth.across import Guard
from llmrank.synth.base import DocumentFilter, Stage, Writer
from llmrank.synth.filters import Language
from llmrank.synth.queries import WriteQueries
from llmrank.synth.records import record, restored, whole
from llmrank.synth.shots import NEEDS, Chosen, choose_shots
from llmrank.types import Document, Tally

T = TypeVar("T")
R = TypeVar("R")
Log = list[tuple[Ask[Any], Answer[Any]]]
"""What was asked and answered, in the order of the asks."""
Progress = Callable[[str, int, Tally], None]
"""Called with a step, how many documents or examples are through it, and the cost of all so far."""


class Passed(NamedTuple):
    """How many documents or examples came to a step, and how many of them it kept."""

    step: str
    came: int
    kept: int


def shots(source: str | Path) -> tuple[Shot, ...]:
    """Examples for a writer from JSONL records with `document` and `query`."""
    found = []
    for number, entry in enumerate(trec.read_jsonl(source), start=1):
        document, query = entry.get("document"), entry.get("query")
        if not isinstance(document, str) or not isinstance(query, str):
            raise InputError(f"example {number} lacks a text `document` or `query`", path=source)
        found.append(Shot(document, query))
    return tuple(found)


def needs_of(recipe: Recipe, *, choose: bool = False) -> list[Need]:
    """What a recipe asks, its searches too, and the choice of examples."""
    embeds = [Need(Embed)] if "dense" in recipe.searches else []
    return list(dict.fromkeys([*recipe.needs, *(NEEDS if choose else ()), *embeds]))


def parse_recipe(text: str) -> Recipe:
    """Read a recipe with the reranking methods in it."""
    return parse(text, methods.parse)


def first_stage_of(recipe: Recipe) -> str | None:
    """The first stage that has the indexes which a recipe needs; None where it needs none."""
    return next((name for name, kinds in SEARCHES.items() if kinds == recipe.searches), None)


def check_recipe(recipe: Recipe, world: Corpus, shown: Sequence[Shot] = ()) -> None:
    """`InputError` where there is no index that a step needs, no test data to guard or no guard.

    Also where no writer shows the examples that are given.
    """
    if shown and not any(isinstance(writer, WriteQueries) for writer in recipe.writers):
        raise InputError("no step shows the examples", remedy="write does; across has its own")
    if missing := recipe.searches - world.kinds:
        raise InputError(f"the recipe searches by {', '.join(sorted(missing))}; there is no index")
    guarded = any(isinstance(stage, Guard) for stage in recipe.stages)
    if guarded and world.held_out is None:
        raise InputError("guard needs test data", remedy="name them with --held-out")
    if world.held_out is not None and not guarded:
        raise InputError("no step guards the test data", remedy="add >> guard to the recipe")
    if any(isinstance(stage, Language) for stage in recipe.stages):
        world.language("")  # what it lacks is missed before anything is paid for


def synthesize(
    session: Session,
    recipe: Recipe,
    documents: Iterable[Document],
    folder: RunFolder,
    *,
    world: Corpus | None = None,
    shown: Sequence[Shot] = (),
    choose: int = 0,
    sources: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> tuple[Tally, list[Passed]]:
    """Run a recipe into a folder; what it cost, and how many got past each step.

    `examples.jsonl` has every example, dropped ones too, with its provenance; `queries.jsonl` and
    `qrels/` have the kept ones in BEIR's layout, next to the corpus; `report.html` shows it all.
    Answers that the folder's journal has are not asked for again, so the same call after a crash
    goes on where it stopped and ends with the same files. `shown` are examples for the writers; to
    `choose` so many of them the model says behind which ones it finds other queries likeliest.
    """
    started = time.time()
    world = world or Corpus()
    session.check(needs_of(recipe, choose=bool(choose)))
    check_recipe(recipe, world, shown)
    folder.check("recipe")
    with between(folder.path) as files:
        work = _Work(session, recipe, world, shown, files, progress)
        chosen = work.choose(choose) if choose else None
        _write_examples(folder, work.run(documents))
    manifest = {
        "recipe": str(recipe),
        "shown": [shot._asdict() for shot in (chosen.shots if chosen else shown)],
        "chosen": {"best": chosen.value, "worst": chosen.worst} if chosen else None,
        **session.describe(),
        "data": {name: _origin(path, f"{name}.jsonl") for name, path in (sources or {}).items()},
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    told = summary(session, work.tally, 0, started, 0)
    del told["queries"]
    told["funnel"] = [passed._asdict() for passed in work.funnel]
    folder.write("summary.json", told)
    records = trec.read_jsonl(folder.path / "examples.jsonl")
    topics = world.topics(work.chosen) if "dense" in world.kinds else {}
    caps = session.settings.caps
    prices = {"prompt": caps.prompt_price, "completion": caps.completion_price}
    page = report(records, {**told, "topics": topics, "prices": prices}, manifest)
    folder.write_text("report.html", page)
    return work.tally, work.funnel


def _origin(source: str | Path, inside: str) -> dict[str, str]:
    """The fingerprint of a source, and where later commands find it."""
    path = Path(source)
    where = {"path": str(path.resolve())} if path.exists() else {"path": str(source)}
    return fingerprint(source, inside) | where


class _Work:
    """One recipe on its way: step after step over the whole set, in the order of the documents.

    Between two steps the examples are in a file, so memory depends on what is under way and not on
    their number.
    """

    def __init__(
        self,
        session: Session,
        recipe: Recipe,
        world: Corpus,
        shown: Sequence[Shot],
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self.tally = Tally()
        self.funnel: list[Passed] = []
        self.chosen: list[str] = []
        self._session, self._recipe, self._world, self._shown = session, recipe, world, shown
        self._folder = folder
        self._progress = progress or (lambda _step, _count, _cost: None)

    def choose(self, n: int) -> Chosen:
        """Choose the examples that writers are shown."""
        plan = staged(choose_shots(self._shown, n), "choice of examples")
        found: list[Chosen] = []
        self._each(None, (None,), lambda _: plan, lambda _item, chosen, _log: found.append(chosen))
        self._shown = found[0].shots
        return found[0]

    def run(self, documents: Iterable[Document]) -> Path:
        """The file with all examples, dropped ones too."""
        chosen = self._recipe.choice.choose(named(distinct(documents)), self._world)
        counted = Counted(chosen)
        place, each = self._spooled(0), iter(counted)
        for number, one in enumerate(self._recipe.filters):
            place = self._spooled(number)
            self._filter(one, each, place)
            each = map(as_document, read_lines(place))
        written = self._spooled(len(self._recipe.filters))
        self._write(each, written)
        if not counted.count:
            raise InputError("no document was chosen", remedy="it takes documents with a text")
        self.chosen = counted.drawn
        self.funnel.insert(0, Passed(str(self._recipe.choice), counted.count, counted.count))
        for number, stage in enumerate(self._recipe.stages, start=len(self._recipe.filters) + 1):
            before, written = written, self._spooled(number)
            self._stage(stage, before, written)
            before.unlink()
        return written

    def _spooled(self, number: int) -> Path:
        return self._folder / f"{number}.jsonl"

    def _filter(self, step: DocumentFilter, documents: Iterable[Document], target: Path) -> None:
        memory = self._once(step, step.begin(self._world))
        count = Counter[str]()
        with target.open("w", encoding="utf-8") as stream:

            def take(document: Document, found: object, log: Log) -> None:
                count["came"] += 1
                if step.keeps(document, found, memory):
                    count["kept"] += 1
                    write_line(stream, [document.id, document.text, document.title])

            self._each(step, documents, lambda one: step.plan(one, self._world), take)
        self.funnel.append(Passed(str(step), count["came"], count["kept"]))

    def _write(self, documents: Iterable[Document], target: Path) -> None:
        """Every writer writes for every document; its examples are numbered through."""
        writers = self._recipe.writers
        came, kept = Counter[Step](), Counter[Step]()
        with target.open("w", encoding="utf-8") as stream:

            def take(document: Document, found: list[tuple[list[Example], Log]], _: Log) -> None:
                number = 0
                for writer, (examples, log) in zip(writers, found, strict=True):
                    for example in self._with_calls(writer, examples, log):
                        write_line(stream, whole(replace(example, id=f"{document.id}#{number}")))
                        number += 1
                        came[writer] += 1
                        kept[writer] += example.kept

            def plan(document: Document) -> Plan[list[tuple[list[Example], Log]]]:
                plans = (one.plan(document, self._world, self._shown) for one in writers)
                each = zip(writers, plans, strict=True)
                return together([_logged(staged(plan, str(one))) for one, plan in each])

            self._each(None, documents, plan, take)
        self.funnel += [Passed(str(one), came[one], kept[one]) for one in writers]

    def _with_calls(self, writer: Writer, examples: list[Example], log: Log) -> Iterator[Example]:
        """Each example with the text that was written for it, and what all of them took."""
        texts = [pair for pair in log if isinstance(pair[0], Write)]
        others = [pair for pair in log if not isinstance(pair[0], Write)]
        for example, text in zip(examples, texts, strict=bool(examples)):
            yield replace(example, calls=_calls(writer, [text, *others], self._session.prompts))

    def _stage(self, stage: Stage, before: Path, target: Path) -> None:
        memory = self._once(stage, stage.begin(self._world))
        count = Counter[str]()

        def plan(example: Example) -> Plan[Any]:
            return stage.plan(example, self._world) if example.kept else _nothing()

        with target.open("w", encoding="utf-8") as stream:

            def take(example: Example, found: object, log: Log) -> None:
                if example.kept:
                    calls = (*example.calls, *_calls(stage, log, self._session.prompts))
                    example = stage.settle(replace(example, calls=calls), found, memory)
                    count["came"] += 1
                    count["kept"] += example.kept
                write_line(stream, whole(example))

            self._each(stage, map(restored, read_lines(before)), plan, take)
        self.funnel.append(Passed(str(stage), count["came"], count["kept"]))

    def _once(self, step: Step, plan: Plan[T]) -> T:
        found: list[T] = []
        self._each(step, (None,), lambda _: plan, lambda _item, result, _log: found.append(result))
        return found[0]

    def _each(
        self,
        step: Step | None,
        items: Iterable[T],
        plan: Callable[[T], Plan[R]],
        take: Callable[[T, R, Log], None],
    ) -> None:
        """Run a plan for each item; `take` gets item, result and log in the order of the items."""
        waiting: dict[int, tuple[T, tuple[R, Log]]] = {}
        name = "write" if step is None else str(step)
        turn = 0

        def finished(key: int, done: tuple[T, tuple[R, Log]], tally: Tally) -> None:
            nonlocal turn
            self.tally += tally
            waiting[key] = done
            while turn in waiting:
                item, (found, log) = waiting.pop(turn)
                take(item, found, log)
                turn += 1
                self._progress(name, turn, self.tally)

        def one(item: T) -> Plan[tuple[T, tuple[R, Log]]]:
            whole_plan = plan(item) if step is None else staged(plan(item), name)
            return item, (yield from _logged(whole_plan))

        self._session.run_sync(((i, one(item)) for i, item in enumerate(items)), finished)


def _nothing() -> Plan[None]:
    yield from ()


def _logged(plan: Plan[R]) -> Plan[tuple[R, Log]]:
    """The same plan, which also returns what it asked and what the answers were."""
    log: list[Any] = []

    def asked(item: Ask[Any], place: int) -> Plan[Answer[Any]]:
        answer = yield from ask(item)
        log[place] = (item, answer)
        return answer

    def change(item: Ask[Any]) -> Plan[Answer[Any]]:
        log.append(None)
        return asked(item, len(log) - 1)

    return (yield from reworked(plan, change)), log


def _calls(step: Step, log: Log, prompts: PromptSet) -> tuple[Calls, ...]:
    """What a step asked for one example, by prompt."""
    groups: dict[str, Log] = defaultdict(list)
    for item, answer in log:
        named = "" if isinstance(item, Embed) else prompts.template(item).name
        groups[named].append((item, answer))
    return tuple(_called(step, groups[name], prompts) for name in sorted(groups))


def _called(step: Step, log: Log, prompts: PromptSet) -> Calls:
    item = log[0][0]
    answers = [answer for _, answer in log]
    template = None if isinstance(item, Embed) else prompts.slot(need(item))
    params: dict[str, object] = {}
    if isinstance(item, Write):
        params = asdict(prompts.render(item).params)
    elif template is not None:
        params = template.params.model_dump()
    return Calls(
        str(step),
        template.name if template else "",
        template.sha256 if template else "",
        next((answer.model for answer in answers if answer.model), ""),
        params,
        len(answers),
        dict(sorted(Counter(str(answer.status) for answer in answers).items())),
        sum(answer.usage.prompt_tokens for answer in answers),
        sum(answer.usage.completion_tokens for answer in answers),
        tuple(answer.key for answer in answers),
    )


def _write_examples(folder: RunFolder, made: Path) -> None:
    """The files of a run folder that hold examples."""

    def kept() -> Iterator[Example]:
        return (example for example in map(restored, read_lines(made)) if example.kept)

    trec.write_jsonl(folder.path / "examples.jsonl", map(record, map(restored, read_lines(made))))
    texts = ({"_id": one.id, "text": one.query} for one in kept())
    trec.write_jsonl(folder.path / "queries.jsonl", texts)
    (folder.path / "qrels").mkdir(exist_ok=True)
    splits = sorted({example.split or "train" for example in kept()} | {"train"})
    for stale in set(folder.path.glob("qrels/*.tsv")) - {_qrels(folder, one) for one in splits}:
        stale.unlink()
    for split in splits:
        judgements = (
            (one.id, document, grade)
            for one in kept()
            if (one.split or "train") == split
            for document, grade in one.positives.items()
        )
        trec.write_qrels(_qrels(folder, split), judgements)


def _qrels(folder: RunFolder, split: str) -> Path:
    return folder.path / "qrels" / f"{split}.tsv"
