from __future__ import annotations

import json
import math
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank.report import report
from llmrank.report.figures import HEIGHT, LEFT, RIGHT, TOP, WIDTH, histogram, scatter
from llmrank.report.passages import agreements, margins, spearman
from llmrank.report.sample import Names, Numbers, Reservoir, quantile
from llmrank.synth.base import SOURCE, Calls, Example, Passage, Span, Verdict
from llmrank.synth.records import record
from llmrank.types import Document

Record = dict[str, Any]
VOID = {"meta", "!doctype"}


class Page(HTMLParser):
    """Text and elements of a page; fails where a tag is not closed or not opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[list[str]]:
        """The rows of tables that begin with a cell."""
        return [[cell.strip() for cell in row] for row in self.rows if row[0].strip() == first]

    @property
    def plots(self) -> list[str | None]:
        return [
            attrs["aria-label"]
            for tag, attrs in self.elements
            if tag == "svg" and attrs.get("class") == "plot"
        ]


def made(name: str, query: str, *verdicts: tuple[str, bool, float | None], **more: Any) -> Record:  # noqa: ANN401
    """An example whose document is the part of its id before the number."""
    told = [{"stage": s, "passed": p, "value": v, "bound": 0.5, "note": ""} for s, p, v in verdicts]
    return {
        "_id": name,
        "query": query,
        "kind": "question",
        "kept": bool(query) and all(passed for _, passed, _ in verdicts),
        "split": "train",
        "sources": [{"document": name.partition("#")[0], "start": 0, "end": 9}],
        "passages": [],
        "verdicts": told,
        "calls": [],
        **more,
    }


def passage(document: str, label: int | None, origin: str, **scores: float) -> Record:
    return {"document": document, "label": label, "origin": origin, "scores": scores}


def call(stage: str, prompt: str, calls: int, tokens: int) -> Record:
    return {
        "stage": stage,
        "prompt": prompt,
        "sha256": prompt * 4,
        "model": "m",
        "params": {},
        "calls": calls,
        "statuses": {"ok": calls},
        "prompt_tokens": tokens,
        "completion_tokens": 1,
        "keys": [],
    }


def six() -> list[Record]:
    """One with all there is, and one for each way to be dropped."""
    rich = made(
        "a#0",
        "why does dough rise",
        ("copied(most=0.9)", True, 0.25),
        ("round_trip(k=1)", True, 1),
        passages=[
            passage("a", 1, "source", teacher=0.9, bm25=7.0),
            passage("b", 0, "bm25", teacher=0.4, bm25=9.0),
            passage("c", None, "bm25", teacher=0.8, bm25=8.0),
            passage("d", 2, "dense", teacher=0.7),
            passage("a#0-1", 0, "written"),
            passage("a#0-2", None, "query"),
        ],
        calls=[
            call("write", "query", 1, 120),
            call("relabel(yesno@2)", "yesno", 2, 400),
            call("unique", "", 1, 6),
        ],
    )
    return [
        rich,
        made("a#1", "what is yeast", ("copied(most=0.9)", True, 0.5), kind="claim"),
        made("b#0", "", calls=[call("write", "query", 1, 80)]),
        made("b#1", "copied words here", ("copied(most=0.9)", False, 1.0)),
        made("c#0", "a b c", ("copied(most=0.9)", True, 0.0), ("round_trip(k=1)", False, None)),
        made("c#1", "d e f g", kept=False),
    ]


MANIFEST: dict[str, Any] = {
    "recipe": "all >> write >> copied >> round_trip",
    "model": "openai:m",
    "prompts": {"query_search": "query" * 4, "scale": "f" * 64},
    "data": {"corpus": {"name": "scifact"}},
    "thinking": None,
}


def test_the_funnel_names_where_each_example_was_lost() -> None:
    page = Page(report(six(), {}, MANIFEST))
    assert page.row("asked for")[0][1:4] == ["6", "100 %", ""]
    assert page.row("written")[0][1:4] == ["5", "83.3 %", "1"]
    assert page.row("copied(most=0.9)")[0][1:4] == ["4", "66.7 %", "1"]
    assert page.row("round_trip(k=1)")[0][1:4] == ["3", "50.0 %", "1"]
    assert page.row("kept")[0][1:4] == ["2", "33.3 %", "1"]
    assert "2 of 6 examples were kept (33.3 %), written and judged by openai:m" in page.text
    assert MANIFEST["recipe"] in page.text


def test_queries_documents_and_passages() -> None:
    page = Page(report(six(), {}, MANIFEST))
    assert page.row("question")[0][1:4] == ["4", "1", "25.0 %"]
    assert page.row("claim")[0][1:4] == ["1", "1", "100 %"]
    words, copied = page.row("kept")[1:]
    assert words == ["kept", "2", "3.25", "3.5", "3.75"]
    assert copied == ["kept", "2", "0.3125", "0.375", "0.4375"]
    assert "3 documents were given to the writer; 1 of them have a query that was kept" in page.text
    assert page.row("2")[0][1] == "100 %"  # documents with two kept queries
    assert page.row("bm25") == [
        ["bm25", "0", "1", "1"],
        ["bm25", "2", "0", "1", "0 % to 50.0 %"],
    ]
    assert page.row("dense")[1] == ["dense", "1", "1", "0", "100 % to 100 %"]
    assert page.row("together")[0] == ["together", "3", "1", "1", "33.3 % to 66.7 %"]
    assert page.row("written")[1][1:] == ["0", "1", "0"]
    # 7 - 9 by bm25; by the teacher the lowest positive has 0.7 and the highest negative 0.4
    assert "1 examples, 100 % below 0; the median is -2." in page.text
    assert "1 examples, 0 % below 0; the median is 0.3." in page.text
    # By bm25 b > c > a, by the teacher a > c > b.
    assert page.row("bm25, teacher")[0] == ["bm25, teacher", "1", "3", "-1.00"]
    assert page.plots == [
        "Lengths of the queries",
        "Overlap of query and source",
        "Margins of teacher",
        "Margins of bm25",
    ]


def test_every_step_of_the_recipe() -> None:
    steps = [
        {"step": "random(6)", "came": 6, "kept": 6},
        {"step": "worthwhile", "came": 6, "kept": 3},
    ]
    page = Page(report(six(), {"funnel": steps}, MANIFEST))
    assert page.row("worthwhile")[0] == ["worthwhile", "6", "3", "50.0 %"]
    assert page.row("random(6)")[0] == ["random(6)", "6", "6", "100 %"]
    assert "Every step" not in Page(report(six(), {}, MANIFEST)).text


def test_stages_stand_as_in_the_recipe() -> None:
    first = made("a#0", "a b c", ("write(kinds=claim)", True, None), ("unique", True, None))
    second = made("a#1", "d e f", ("write(kinds=title)", True, None), ("unique", False, None))
    names = ["all", "write(kinds=claim)", "write(kinds=title)", "unique"]
    steps = [{"step": name, "came": 2, "kept": 2} for name in names]
    page = Page(report([first, second], {"funnel": steps}, MANIFEST))
    table = [row[:2] for row in page.rows[: page.rows.index(["step", "came", "kept", "of these"])]]
    assert table[3:] == [[names[1], "2"], [names[2], "2"], ["unique", "1"], ["kept", "1"]]


def test_steps_that_no_example_tells_of_cost_too() -> None:
    step = {"step": "worthwhile", "came": 9, "kept": 6}
    stage = {"asks": 9, "prompt_tokens": 900, "completion_tokens": 9, "outcomes": {"ok": 9}}
    summary = {"funnel": [step], "stages": {"worthwhile": stage, "yesno@2": stage}}
    page = Page(report(six(), summary, MANIFEST))
    assert page.row("worthwhile")[-1][1:] == ["9", "900", "9", "9 ok"]
    assert page.row("together")[1][1:] == ["14", "1,506", "13", "14 ok"]
    assert page.row("yesno@2") == []


def test_a_map_of_some_documents_says_so() -> None:
    topics = {"a": {"point": [0.0, 1.0], "cluster": 7}, "b": {"point": [1, 1], "cluster": 1}}
    text = Page(report(six(), {"topics": topics}, MANIFEST)).text
    assert "Map and clusters have 2 of the documents, drawn at random." in text


def test_tokens_prompts_and_manifest() -> None:
    prices = {"prompt": 1000.0, "completion": 10_000.0}
    page = Page(report(six(), {"prices": prices, "complete": False}, MANIFEST))
    assert page.row("write")[0][1:] == ["2", "200", "2", "0.2200", "2 ok"]
    assert page.row("together")[1][1:] == ["5", "606", "4", "0.6460", "5 ok"]
    assert "305 tokens for each example kept" in page.text
    assert "stopped at a cap" in page.text
    assert page.row("query")[1] == ["query", "2", "query" * 4]  # the first is an origin
    assert page.row("") == []  # embeddings have no prompt
    assert page.row("query_search") == []  # the same template
    assert page.row("scale")[0] == ["scale", "", "f" * 64]
    assert page.row("data.corpus.name")[0] == ["data.corpus.name", "scifact"]
    assert page.row("thinking") == page.row("recipe") == []
    assert "There is no map of topics" in page.text
    without = Page(report(six(), {}, MANIFEST))
    assert without.row("write")[0][1:] == ["2", "200", "2", "2 ok"]
    assert "No prices were given" in without.text


def test_samples_say_what_dropped_them() -> None:
    text = Page(report(six(), {}, MANIFEST)).text
    assert "copied words here b#1, question; b 0–9; copied(most=0.9): 1 against 0.5" in text
    assert "(no query) b#0, question; b 0–9" in text
    for why in ("no query was written", "no verdict says why", "copied(most=0.9)"):
        assert f"Dropped, {why}: 1 of 1" in text
    assert "Kept: 2 of 2" in text


def test_topics_are_found_by_example_and_by_document() -> None:
    topics = {
        "a": {"point": [0.0, 1.0], "cluster": 7},
        "c#0": {"point": [3, -2]},
        "b": {"cluster": "rest"},
    }
    page = Page(report(six(), {"topics": topics}, MANIFEST))
    assert "Map of the topics" in page.plots
    assert page.row("7")[0][1:3] == ["2", "2"]
    assert page.row("rest")[0][1:3] == ["1", "0"]
    drawn = Counter(tag for tag, _ in page.elements if tag in ("circle", "path"))
    assert drawn == {"circle": 2, "path": 1}
    assert "c#0" in page.text
    assert "a#1, cluster 7" in page.text


@pytest.mark.parametrize("examples", [[], [{"_id": "a", "query": "", "kept": False}]])
def test_what_is_missing_is_said_and_never_drawn(examples: list[Record]) -> None:
    page = Page(report(iter(examples), {}, {}))
    assert page.plots == []
    for sentence in (
        "The manifest names no recipe.",
        "No query was written.",
        "no stage copied measured it",
        "the examples name no documents",
        "the run did not cluster its documents",
        "The examples have no passages",
        "no negatives were mined",
        "no kept example has a score for both",
        "no example has three passages",
        "the examples tell of no calls",
        "No prices were given",
        "No example was kept.",
        "Neither the examples nor the manifest name a prompt.",
        "The manifest is empty.",
    ):
        assert sentence in page.text
    assert ("There are no examples." in page.text) == (not examples)


def test_nothing_of_a_query_or_a_document_becomes_markup() -> None:
    tag = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
    bad = f"{tag}\x1b[2J\x00\ud800\u202e" + "{{7*7}}"
    example = six()[0]
    example |= {"_id": bad, "query": bad, "kind": bad, "split": bad}
    example["sources"][0]["document"] = bad
    example["passages"][0] |= {"origin": bad, "scores": {bad: 1.0}}
    example["passages"][1]["scores"] = {bad: 0.5}
    example["verdicts"][0] |= {"stage": bad, "note": bad}
    example["calls"][0] |= {"stage": bad, "prompt": bad, "sha256": bad}
    dropped = {**example, "kept": False}
    dropped["verdicts"] = [{**example["verdicts"][0], "passed": False}]
    topics = {bad: {"point": [1, 2], "cluster": bad}}
    html = report([example, dropped], {"topics": topics}, {"recipe": bad, "model": bad, bad: bad})
    page = Page(html)
    html.encode()
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "a"}
    names = {name for _, attrs in page.elements for name in attrs}
    assert not {n for n in names if n.startswith("on")} | names & {"src", "href", "xlink:href"}
    assert not re.search("[\x00\x1b\u202e]", html)
    assert "url(" not in html
    assert page.text.count("{{7*7}}") > 10


names = st.text(max_size=8)
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3) | st.none()
counts = st.integers(0, 10**6)
stages = st.sampled_from(["copied(most=0.9)", "round_trip", "guard", "mine(n=8)"]) | names
scores = st.dictionaries(st.sampled_from(["bm25", "dense", "teacher"]), st.floats(-9, 9))
passages = st.fixed_dictionaries(
    {
        "document": names,
        "label": st.none() | st.integers(0, 3),
        "origin": st.sampled_from(["source", "bm25", "dense", "written"]),
        "scores": scores,
    }
)
verdicts = st.fixed_dictionaries(
    {"stage": stages, "passed": st.booleans(), "value": numbers, "bound": numbers, "note": names}
)
calls = st.fixed_dictionaries(
    {
        "stage": stages,
        "prompt": names,
        "sha256": names,
        "calls": counts,
        "statuses": st.dictionaries(st.sampled_from(["ok", "malformed"]), counts),
        "prompt_tokens": counts,
        "completion_tokens": counts,
    }
)
sources = st.fixed_dictionaries({"document": names, "start": counts, "end": counts})


@st.composite
def records(draw: st.DrawFn) -> Record:
    told = draw(st.lists(verdicts, max_size=4))
    query = draw(st.text(max_size=30))
    kept = bool(query) and all(verdict["passed"] for verdict in told)
    return {
        "_id": draw(names),
        "query": query,
        "kind": draw(names),
        "kept": kept and draw(st.booleans()),
        "split": draw(names),
        "sources": draw(st.lists(sources, max_size=2)),
        "passages": draw(st.lists(passages, max_size=6)),
        "verdicts": told,
        "calls": draw(st.lists(calls, max_size=2)),
    }


@settings(max_examples=40)
@given(st.lists(records(), max_size=6), st.lists(st.floats(), min_size=2, max_size=2))
def test_every_set_of_examples_gives_a_whole_page(examples: list[Record], at: list[float]) -> None:
    topics = {example["_id"]: {"point": at, "cluster": 1} for example in examples[::2]}
    html = report(iter(examples), {"topics": topics}, MANIFEST)
    assert html == report(examples, {"topics": topics}, MANIFEST)
    html.encode()
    page = Page(html)
    for _, attributes in page.elements:
        for name in attributes.keys() & {"x", "y", "width", "height", "x1", "x2", "cx", "cy"}:
            assert -1 <= float(attributes[name] or "nan") <= 650
    kept = sum(example["kept"] for example in examples)
    assert f"{kept} of {len(examples)} examples were kept" in page.text
    if examples:
        start = next(i for i, row in enumerate(page.rows) if row[0].strip() == "asked for")
        funnel = []
        for row in page.rows[start:]:
            funnel.append([cell.strip() for cell in row])
            if row[0].strip() == "kept" and len(row) == 5:
                break
        left = [int(row[1]) for row in funnel]
        lost = [int(row[3] or 0) for row in funnel]
        assert left[0] == len(examples)
        assert left[-1] == kept
        assert all(b == a - n for a, b, n in zip(left, left[1:], lost[1:], strict=False))


class Tracked(dict[str, Any]):
    """A record that can be watched."""


def test_examples_are_read_once_and_let_go() -> None:
    living: weakref.WeakSet[Tracked] = weakref.WeakSet()
    most = 0

    class Watched(Tracked):
        __hash__ = object.__hash__  # type: ignore[assignment]

    def stream() -> Iterator[Mapping[str, Any]]:
        nonlocal most
        for i in range(3000):
            example = Watched(six()[i % 6] | {"_id": f"{i}"})
            living.add(example)
            most = max(most, len(living))
            yield example

    page = Page(report(stream(), {}, MANIFEST))
    assert page.row("asked for")[0][1] == "3,000"
    assert "Kept: 12 of 1,000" in page.text
    assert most <= 12 + 4 * 4 + 3


# ---- summaries of a stream ----


def test_a_reservoir_gives_every_item_the_same_chance() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(2000):
        reservoir = Reservoir[int](5, str(seed))
        for item in range(20):
            reservoir.add(item)
        assert len(set(reservoir.items)) == 5
        drawn.update(reservoir.items)
    # 500 each, with a standard deviation of 19.
    assert all(abs(drawn[item] - 500) < 100 for item in range(20))


@given(st.lists(st.sampled_from("abcdefgh")), st.integers(1, 10))
def test_names_are_exact_as_far_as_they_are_kept(stream: list[str], size: int) -> None:
    found = Names(size)
    for name in stream:
        found.add(name)
    counts = Counter(stream)
    assert sum(found.times.values()) == min(size, len(counts))
    assert not Counter(found.times) - Counter(counts.values())
    if len(counts) <= size:
        assert len(found) == len(counts)
        assert found.times == Counter(counts.values())


def test_the_number_of_names_is_estimated() -> None:
    found = Names(1000)
    for i in range(30_000):
        found.add(f"document {i % 20_000}")
    assert found.dropped
    assert abs(len(found) - 20_000) < 2_000  # three standard deviations
    # Half of the names came twice.
    assert abs(found.times[2] - 500) < 60
    assert found.times[1] + found.times[2] == 1000


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles(found: list[float], share: float) -> None:
    import numpy as np

    mine = quantile(sorted(found), share)
    assert math.isclose(mine, float(np.quantile(found, share)), rel_tol=1e-9, abs_tol=1e-6)


def test_numbers_leave_out_what_cannot_be_drawn() -> None:
    numbers = Numbers("seed")
    for value in (1.0, math.nan, math.inf, -math.inf, 1e300, -2.0):
        numbers.add(value)
    assert (numbers.items, numbers.seen, numbers.below_zero) == ([1.0, -2.0], 2, 1)


# ---- pictures ----

values = st.lists(st.floats(-1e99, 1e99) | st.floats(-1, 1) | st.integers(0, 40), max_size=40)


@given(values, values, st.booleans(), st.lists(st.floats(-9, 9), max_size=2))
def test_a_histogram_has_all_of_both_groups(
    kept: list[float], dropped: list[float], whole: bool, marks: list[float]
) -> None:
    if not kept and not dropped:
        return
    if whole:
        kept, dropped = ([float(int(x)) for x in group] for group in (kept, dropped))
        marks = []
    drawn = histogram({"kept": kept, "dropped": dropped}, whole=whole, marks=marks)
    tallest = 0.0
    for group, numbers in (("kept", kept), ("dropped", dropped)):
        bars = [bar for bar in drawn.bars if bar.group == group]
        shares = [float(bar.told.rpartition(" %")[0].rpartition(" ")[2]) for bar in bars]
        assert not numbers or abs(sum(shares) - 100) < 0.05 * len(bars) + 1e-6
        assert len(bars) <= 31
        tallest = max([tallest, *(bar.height for bar in bars)])
    assert math.isclose(tallest, HEIGHT - TOP - 24)
    for bar in drawn.bars:
        assert bar.x >= LEFT
        assert bar.x + bar.width <= WIDTH - RIGHT + 1e-6
        assert bar.y >= TOP - 1e-6
    for tick in (*drawn.across, *drawn.marks):
        assert LEFT - 1e-6 <= tick.at <= WIDTH - RIGHT + 1e-6
    assert drawn.across
    for earlier, later in zip(drawn.across, drawn.across[1:], strict=False):
        assert float(earlier.label) < float(later.label)


def test_bins_have_round_edges() -> None:
    shares = [i / 100 for i in range(101)]
    drawn = histogram({"kept": shares}, marks=[0.9])
    assert [tick.label for tick in drawn.across][:3] == ["0", "0.10", "0.20"]
    assert drawn.across[-1].label == "1.00"
    assert len(drawn.bars) == 20
    assert not drawn.beyond
    (mark,) = drawn.marks
    assert any(math.isclose(mark.at, tick.at) for tick in drawn.across if tick.label == "0.90")
    words = histogram({"kept": [3, 3, 4, 9]}, whole=True)
    assert [bar.told for bar in words.bars] == [
        "kept, from 3: 50.0 %",
        "kept, from 4: 25.0 %",
        "kept, from 9: 25.0 %",
    ]
    assert [tick.label for tick in words.across] == ["3", "4", "5", "6", "7", "8", "9"]
    assert histogram({"kept": [5.0] * 999 + [5000.0]}, whole=True).beyond


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=20))
def test_a_map_stays_in_its_frame_and_keeps_its_shape(points: list[tuple[float, float]]) -> None:
    dots = scatter([(x, y, "kept", "") for x, y in points])
    assert all(9 <= dot.x <= WIDTH - 9 and 9 <= dot.y <= WIDTH / 2 - 9 for dot in dots)
    # Upwards on the page is upwards on the map.
    assert dots[0].y <= dots[-1].y + 1e-6 or points[0][1] <= points[-1][1]


# ---- scores ----

floats = st.lists(st.floats(-5, 5), min_size=3, max_size=12)


@given(floats, st.data())
def test_spearman(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.floats(-5, 5), min_size=len(a), max_size=len(a)))
    mine = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert mine is None
        return
    assert mine is not None
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, [-x for x in a]) == pytest.approx(-1)
    assert spearman(b, a) == spearman([4 * x for x in a], b) == mine
    if len(set(a)) == len(set(b)) == len(a):
        ranks = [[sorted(values).index(x) for x in values] for values in (a, b)]
        squares = sum((x - y) ** 2 for x, y in zip(*ranks, strict=True))
        n = len(a)
        assert mine == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))


def test_spearman_shares_the_ranks_of_equal_numbers() -> None:
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2).
    assert math.isclose(spearman([0, 0, 1], [1, 2, 3]) or 0, math.sqrt(0.75))


@given(st.lists(passages, max_size=8))
def test_margins_are_those_of_the_closest_pair(found: list[Record]) -> None:
    by_hand = {}
    for name in ("bm25", "dense", "teacher"):
        gaps = [
            a["scores"][name] - b["scores"][name]
            for a in found
            for b in found
            if (a["label"] or 0) > 0 and b["label"] == 0
            if name in a["scores"] and name in b["scores"]
        ]
        if gaps:
            by_hand[name] = min(gaps)
    assert dict(margins(found)) == pytest.approx(by_hand)


def test_agreement_needs_three_passages_that_have_both() -> None:
    two = [passage("a", 1, "source", x=1.0, y=2.0), passage("b", 0, "bm25", x=0.0, y=3.0)]
    assert list(agreements([*two, passage("c", 0, "bm25", x=2.0)])) == []
    three = [*two, passage("c", 0, "bm25", x=-1.0, y=4.0, z=0.0)]
    assert list(agreements(three)) == [(("x", "y"), -1.0, 3)]


def test_the_records_that_a_recipe_writes() -> None:
    document = Document("d", "some text", "Title")
    example = Example(
        "d#0",
        "a query",
        "claim",
        (Span(document, 0, 5),),
        (Passage(document, SOURCE, 1, {"teacher": 0.5}), Passage(Document("e", "x"), "bm25")),
        (Verdict("copied(most=0.8)", True, 0.5, 0.8),),
        (Calls("write", "p", "s" * 64, "m", {}, 1, {"ok": 1}, 30, 2, ("k",)),),
    )
    page = Page(report([record(example)], {}, MANIFEST))
    assert "a query d#0, claim; d 0–5" in page.text
    assert page.row("p")[0] == ["p", "1", "s" * 64]
    assert page.row("bm25")[1][1:] == ["1", "0", "1", "0 % to 100 %"]
    assert page.plots == ["Lengths of the queries", "Overlap of query and source"]


def test_records_as_json_gives_them_back() -> None:
    again = [json.loads(json.dumps(example)) for example in six()]
    assert report(again, {}, MANIFEST) == report(six(), {}, MANIFEST)
