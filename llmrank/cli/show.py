"""`llmrank show`: how a synthetic example came to be."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmrank.cli.options as o
import llmrank.cli.screen as screen
from llmrank.errors import InputError

if TYPE_CHECKING:
    from llmrank.request import Reply
    from llmrank.types import Document

Record = Mapping[str, Any]

EXAMPLES = "examples.jsonl"
_NEAREST = 3
_BEGINNING = 60  # characters of a passage
# Controls, halves of characters, and marks that turn the direction of what follows them: from a
# model or a corpus they could hide or forge what a terminal shows.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Id of an example.")],
    run: Annotated[Path, typer.Option("--run", help="Folder that llmrank generate wrote.")],
    corpus: Annotated[
        str | None,
        typer.Option(
            help="The corpus of the run, for texts; default: the one its manifest names, if it is "
            "here and unchanged."
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Retell how an example came to be: documents, prompts, replies, verdicts, scores, tokens.

    The journal keeps replies, not the prompts that they answer: of these the template is shown,
    where it is one that comes with llmrank and has not changed since.
    """
    example = _find(run / EXAMPLES, identifier)
    if as_json:
        text = json.dumps(example, ensure_ascii=False, indent=2)
        # Halves of characters cannot be printed; their backslash form is their JSON escape.
        typer.echo(text.encode("utf-8", "backslashreplace").decode())
        return
    try:
        _retell(example, run, corpus)
    except (AttributeError, KeyError, TypeError) as error:
        message = f"the record of {visible(identifier)!r} is damaged: {error!r}"
        remedy = "the same llmrank generate writes it again"
        raise InputError(message, path=run / EXAMPLES, remedy=remedy) from error


def _retell(example: Record, run: Path, corpus: str | None) -> None:
    texts = _texts(example, run, corpus)
    _say_outcome(example)
    _say_sources(example, texts)
    _say_calls(example, run)
    _say_verdicts(example)
    _say_passages(example, texts)
    _say_cost(example, _json(run / "summary.json"))


def visible(text: str) -> str:
    """A text with what a terminal would obey written as escapes instead."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# ---- what is read ----


def _ids(path: Path) -> Iterator[tuple[str, Record]]:
    from llmrank import trec

    for example in trec.read_jsonl(path):
        yield str(example.get("_id", "")), example


def _find(path: Path, wanted: str) -> Record:
    """The example of an id; `InputError` with the nearest ids where there is none."""
    if not path.is_file():
        remedy = "--run takes the --out of llmrank generate"
        raise InputError(f"there is no {EXAMPLES}", path=path.parent, remedy=remedy)
    for name, example in _ids(path):
        if name == wanted:
            return example
    matcher = SequenceMatcher(b=wanted, autojunk=False)

    def alike(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.ratio()

    nearest = heapq.nlargest(_NEAREST, (name for name, _ in _ids(path)), key=alike)
    remedy = f"the nearest: {', '.join(map(visible, nearest))}" if nearest else "it is empty"
    raise InputError(f"no example {visible(wanted)!r}", path=path, remedy=remedy)


def _json(path: Path) -> Record:
    """A JSON file of the run; empty where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(example: Record, run: Path, corpus: str | None) -> Mapping[str, Document]:
    """The documents that the example names, as far as the corpus is to be had."""
    from llmrank import trec
    from llmrank.api.runs import fingerprint

    told: Any = _json(run / "manifest.json").get("data")
    told = told.get("corpus") if isinstance(told, dict) else None
    told = told if isinstance(told, dict) else {}
    source = corpus or told.get("path") or told.get("name", "")
    if corpus is None and (not source or not Path(source).exists()):
        screen.note("the corpus is not here, so documents have no text; give --corpus")
        return {}
    if "sha256" in told and fingerprint(source, "corpus.jsonl").get("sha256") != told["sha256"]:
        if corpus is None:
            screen.note(f"{visible(source)} is not what it was at the time of the run; left out")
            return {}
        screen.note("this is not the corpus that the run was made from, so spans may be wrong")
    named = (*example.get("sources", ()), *example.get("passages", ()))
    return trec.read_texts(source, {str(one["document"]) for one in named})


# ---- what is told ----


def _say(text: str, indent: int = 0) -> None:
    for line in visible(text).splitlines() or [""]:
        typer.echo(" " * indent + line)


def _head(title: str) -> None:
    typer.echo(f"\n{title}")


def _table(columns: list[str], rows: list[list[str]]) -> None:
    head, *lines = ([visible(" ".join(cell.split())) for cell in row] for row in [columns, *rows])
    screen.table(head, lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _say_outcome(example: Record) -> None:
    split = f", in {example['split']}" if example.get("split") else ""
    kind = f", kind {example['kind']}" if example.get("kind") else ""
    _say(f"{example['_id']}: {'kept' if example['kept'] else 'dropped'}{split}{kind}")
    _say(example["query"] or "(no query was written)", 2)


def _say_sources(example: Record, texts: Mapping[str, Document]) -> None:
    _head("Written for")
    for source in example.get("sources", ()):
        start, end = source["start"], source["end"]
        _say(f"{source['document']}, characters {start} to {end}", 2)
        if document := texts.get(source["document"]):
            _say(document.contents[start:end], 4)


def _say_calls(example: Record, run: Path) -> None:
    from llmrank.store import JOURNAL, Journal

    calls = example.get("calls", ())
    if not calls:
        return
    _head("Calls")
    journal = None
    try:
        # Opening one would make it.
        journal = Journal(run / JOURNAL) if (run / JOURNAL).is_file() else None
    except InputError as error:
        screen.note(str(error))
    told: set[str] = set()
    for call in calls:
        _say_call(call)
        if call["prompt"] and call["sha256"] not in told:
            _say_template(call)
            told.add(call["sha256"])
        for key in call["keys"]:
            # A failed call has no key.
            reply = journal.get(key) if journal and key else None
            _say(f"reply {key[:12]}: {_told(reply)}", 4)
    if journal:
        journal.close()


def _say_call(call: Record) -> None:
    statuses = ", ".join(f"{count} {status}" for status, count in call["statuses"].items())
    given = [f"{name}={value}" for name, value in call["params"].items() if value not in (None, [])]
    asked = call["prompt"] or "embeddings"
    _say(call["stage"], 2)
    _say(
        f"{call['calls']} of {asked} to {call['model'] or 'a model without a name'} "
        f"({statuses}), {call['prompt_tokens']:,} prompt and {call['completion_tokens']:,} "
        "completion tokens",
        4,
    )
    if given:
        _say(", ".join(given), 4)


def _say_template(call: Record) -> None:
    from llmrank import prompts

    name, sha256 = call["prompt"], call["sha256"]
    template = prompts.load(name) if name in prompts.names() else None
    if template is None or template.sha256 != sha256:
        _say(f"template {name}, SHA-256 {sha256}: not one of this version of llmrank", 4)
        return
    _say(f"template {name}, SHA-256 {sha256}:", 4)
    for turn in template.messages:
        _say(f"[{turn.role}]\n{turn.text.strip()}", 6)
    if template.text:
        _say(template.text.strip(), 6)


def _told(reply: Reply | None) -> str:
    """What a model answered, in a line where it is no text."""
    if reply is None:
        return "not in the journal"
    parts = []
    if reply.reasoning:
        parts.append(f"(thought: {reply.reasoning})")
    if reply.text:
        parts.append(reply.text)
    if reply.label_logprobs:
        parts.append(", ".join(f"{k!r} {v:.4f}" for k, v in reply.label_logprobs.items()))
    if reply.logprob is not None:
        parts.append(f"log-probability {reply.logprob:.4f} over {reply.tokens} tokens")
    if reply.vectors is not None:
        parts.append(f"vectors {' x '.join(map(str, reply.vectors.shape))}")
    if reply.attention is not None:
        parts.append(f"attention {', '.join(map(_number, reply.attention))}")
    return "\n".join(parts) or "empty"


def _say_verdicts(example: Record) -> None:
    verdicts = example.get("verdicts", ())
    if not verdicts:
        return
    _head("Verdicts")
    rows = [
        [
            verdict["stage"],
            "passed" if verdict["passed"] else "dropped",
            _number(verdict.get("value")),
            _number(verdict.get("bound")),
            verdict.get("note") or "",
        ]
        for verdict in verdicts
    ]
    _table(["stage", "verdict", "value", "bound", "note"], rows)


def _say_passages(example: Record, texts: Mapping[str, Document]) -> None:
    passages = example.get("passages", ())
    if not passages:
        return
    _head("Passages")
    names = list(dict.fromkeys(name for one in passages for name in one.get("scores", ())))
    rows = []
    for one in passages:
        label = one.get("label")
        document = texts.get(one["document"])
        text = one.get("text") or (document.contents if document else "")
        begins = text if len(text) <= _BEGINNING else f"{text[:_BEGINNING]} …"
        scores = [_number(one.get("scores", {}).get(name)) for name in names]
        shown = "undecided" if label is None else str(label)
        rows.append([one["document"], one["origin"], shown, *scores, begins])
    _table(["document", "origin", "label", *names, "text"], rows)


def _say_cost(example: Record, summary: Record) -> None:
    calls = example.get("calls", ())
    prompt = sum(call["prompt_tokens"] for call in calls)
    completion = sum(call["completion_tokens"] for call in calls)
    text = f"{prompt:,} prompt and {completion:,} completion tokens in all"
    if prices := summary.get("prices"):
        money = prompt * prices.get("prompt", 0) + completion * prices.get("completion", 0)
        text += f", {money / 1_000_000:.6f} in money"
    typer.echo(f"\n{text}")
