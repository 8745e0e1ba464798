from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrank import Caps, Session, Settings, trec
from llmrank.api import Estimate, Inputs, RunInput, estimate, rerank_run
from llmrank.backends.wrappers import Minute
from llmrank.rerank import Method, Ranker, parse
from llmrank.store import Journal, RunFolder
from tests.api.judges import MODEL, passage
from tests.servers import Server

COUNTS = (1, 2, 7, 13)


class Data:
    """Queries with 1, 2, 7 and 13 candidates, all texts different."""

    def __init__(self, folder: Path) -> None:
        corpus = [{"_id": f"d{i}", "text": passage(i, f"about {i}")} for i in range(13)]
        trec.write_jsonl(folder / "corpus.jsonl", corpus)
        queries = [{"_id": f"q{n}", "text": f"of {n} texts"} for n in COUNTS]
        trec.write_jsonl(folder / "queries.jsonl", queries)
        groups = ((f"q{n}", [(f"d{i}", 99.0 - i) for i in range(n)]) for n in COUNTS)
        trec.write_run(folder / "run.trec", groups, tag="x")
        (folder / "qrels.txt").write_text("".join(f"q13 0 d{i} {i % 3}\n" for i in range(13)))
        self.folder = folder
        self.model = f"oracle:{folder / 'qrels.txt'},noise=0.5"

    def inputs(self, method: Ranker) -> Inputs:
        return Inputs(RunInput(self.folder / "run.trec", self.folder, self.folder), method.depth)

    def run(self, method: Ranker, into: RunFolder, settings: Settings) -> int:
        with Session(settings, into.journal()) as session:
            rerank_run(session, method, self.inputs(method), into)
            return session.meter.requests


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    yield Data(tmp_path_factory.mktemp("data"))


methods = st.one_of(
    st.builds(lambda depth: Method("yesno", depth=depth), st.integers(1, 15)),
    st.builds(lambda depth: Method("likelihood", depth=depth), st.integers(1, 15)),
    st.builds(
        lambda sizes, depth: Method("sliding", {"window": sizes[0], "stride": sizes[1]}, depth),
        st.integers(2, 15).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
        st.integers(1, 15),
    ),
)


@settings(max_examples=20, deadline=None)
@given(method=methods, known_depth=st.integers(1, 15))
def test_what_is_estimated_is_what_is_sent(
    data: Data,
    tmp_path_factory: pytest.TempPathFactory,
    method: Method,
    known_depth: int,
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    settings = Settings(data.model)
    told = estimate(settings, method, data.inputs(method))
    into = RunFolder(folder / "run")
    assert data.run(method, into, settings) == told.calls
    assert (told.queries, told.known) == (4, 0)
    counts = [min(n, method.depth) for n in COUNTS]
    if method.name == "sliding":
        window, stride = method.parameters["window"], method.parameters["stride"]
        assert isinstance(window, int)
        assert isinstance(stride, int)
        expected = [1 + max(0, -(-(n - window) // stride)) if n > 1 else 0 for n in counts]
        assert (told.calls, told.rounds) == (sum(expected), max(expected))
    else:
        assert (told.calls, told.rounds) == (sum(counts), 1)
    with closing(Journal(folder / "run/journal.sqlite")) as journal:
        again = estimate(settings, method, data.inputs(method), journal)
        deeper = Method(method.name, method.parameters, known_depth)
        partly = estimate(settings, deeper, data.inputs(deeper), journal)
    assert (again.calls, again.known, again.usage.total) == (0, told.calls, 0)
    if method.name != "sliding":
        assert data.run(deeper, into, settings) == partly.calls


def test_repeated_asks_are_sent_once_but_are_not_known(data: Data) -> None:
    # A pass over n confirms n - 1 pairs, 2 calls each; the second would ask the same again, unless
    # the first changed something: then it has n - 2 pairs of its own.
    told = estimate(Settings(data.model), parse("prp(sliding=2)"), data.inputs(parse("prp")))
    assert told.known == 0
    assert told.calls == 2 * (1 + 6 + 12)
    assert told.calls_at_most == 2 * (1 + (6 + 5) + (12 + 11))
    sorting = parse("setwise_bubblesort(c=3, k=2)")
    told = estimate(Settings(data.model), sorting, data.inputs(sorting))
    assert told.known == 0
    assert told.calls < told.calls_at_most <= 2 * (1 + 3 + 6)


def test_an_exact_number_is_no_range(data: Data) -> None:
    for text in ("sliding(window=4, stride=2)", "yesno", "yesno >> full@5", "jointrank(k=4)"):
        method = parse(text)
        told = estimate(Settings(data.model), method, data.inputs(method))
        assert told.calls == told.calls_at_most > 0


def test_what_a_journal_knows_of_windows_may_not_come_up(data: Data, tmp_path: Path) -> None:
    method, settings = parse("sliding(window=4, stride=2)"), Settings(data.model)
    data.run(parse("sliding(window=4, stride=2)@10"), RunFolder(tmp_path / "run"), settings)
    with closing(Journal(tmp_path / "run/journal.sqlite")) as journal:
        told = estimate(settings, method, data.inputs(method), journal)
    sent = data.run(method, RunFolder(tmp_path / "run"), settings)
    assert told.calls <= sent <= told.calls_at_most <= 6


def test_tokens_of_a_server_are_an_upper_bound(data: Data, server: Server, tmp_path: Path) -> None:
    method = parse("sliding(window=4, stride=2)")
    caps = Caps(prompt_price=1000.0, completion_price=1e6)
    settings = Settings(MODEL, server.url, caps=caps)
    told = estimate(settings, method, data.inputs(method))
    assert server.received == []
    assert data.run(method, RunFolder(tmp_path / "run"), settings) == told.calls
    asked = [body["max_tokens"] for body in server.bodies("/chat/completions")]
    assert told.usage.completion_tokens == sum(asked)
    assert told.cost == caps.price(told.usage) > 0


@pytest.mark.parametrize("limit", [1, 7, 23, 24, 100])
def test_limits_per_minute_say_how_long_a_run_takes_at_the_least(
    data: Data, server: Server, limit: int
) -> None:
    method, url = parse("yesno"), server.url
    told = estimate(Settings(MODEL, url, rpm=limit), method, data.inputs(method))
    assert told.seconds_at_least == until_sent(Minute(rpm=limit), [0] * told.calls)
    each = told.usage.prompt_tokens // told.calls
    tokens = Settings(MODEL, url, tpm=limit * each)
    least = estimate(tokens, method, data.inputs(method)).seconds_at_least
    sent = until_sent(Minute(tpm=limit * each, count=len), [each] * told.calls)
    assert least <= sent + 60
    assert least > 0 or limit > 20
    pool = Settings(MODEL, f"{url},{url}", rpm=limit)
    assert estimate(pool, method, data.inputs(method)).seconds_at_least == until_sent(
        Minute(rpm=2 * limit), [0] * told.calls
    )


def test_what_no_limit_holds_for_takes_no_time_by_it(data: Data) -> None:
    method = parse("yesno")
    for rpm in (None, 23, 1 << 40):
        told = estimate(Settings(data.model, rpm=rpm), method, data.inputs(method))
        assert told.seconds_at_least == 0


def until_sent(minute: Minute, requests: Sequence[int]) -> float:
    """Seconds until the last of some requests is sent, as early as a limit lets each of them."""
    now = 0.0
    for tokens in requests:
        now = minute.when(now, tokens)
        minute.send(now, tokens)
    return now


def test_prompts_that_cannot_fit_the_context_are_told(data: Data, server: Server) -> None:
    method = parse("sliding(window=13)")
    told = estimate(Settings(f"{MODEL},context=260", server.url), method, data.inputs(method))
    assert (told.too_long, told.calls) == (1, 2)


def test_caps_do_not_hide_what_a_whole_run_would_send(data: Data) -> None:
    method = parse("yesno")
    whole = estimate(Settings(data.model), method, data.inputs(method))
    capped = estimate(Settings(data.model, caps=Caps(calls=2)), method, data.inputs(method))
    assert whole == capped
    assert isinstance(whole, Estimate)


def test_what_is_cut_is_counted(data: Data) -> None:
    method = parse("yesno@5")
    told = estimate(Settings(data.model, passage_words=4), method, data.inputs(method))
    assert told.passages_cut == told.calls == 13
