from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llmrank import Document, Retriever, Session, Settings, trec
from llmrank.api import Corpus, parse_recipe, shots, synthesize
from llmrank.backends.oracle import Oracle
from llmrank.errors import InputError, MissingExtra
from llmrank.store import RunFolder
from tests.api.judges import MODEL
from tests.servers import Body, Server, completion, waits

DOCUMENTS = [Document(f"d{i}", f"text number {i} is about topic {i % 7}") for i in range(40)]


async def _write(request: web.Request, body: Body) -> web.StreamResponse:
    """The number of the last document shown, after a while that has nothing to do with it."""
    number = re.findall(r"number (\d+)", body["prompt"])[-1]
    reply = web.json_response(completion(f" which text is number {number}"))

    async def then(_request: web.Request, _body: Body) -> web.StreamResponse:
        return reply

    return await waits(zlib.crc32(number.encode()) % 50 / 1000, then)(request, body)


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    server.script("/completions", _write)
    with Session(Settings(MODEL, server.url)) as session:
        yield session


def _made(folder: Path) -> list[dict[str, Any]]:
    return list(trec.read_jsonl(folder / "examples.jsonl"))


def _run(
    session: Session, recipe: str, folder: Path, world: Corpus | None = None
) -> list[dict[str, Any]]:
    given = parse_recipe(recipe), iter(DOCUMENTS), RunFolder(folder)
    synthesize(session, *given, world=world)
    return _made(folder)


def test_nothing_shifts_when_answers_come_in_another_order(
    session: Session, tmp_path: Path
) -> None:
    made = _run(session, "all >> write(kinds=search+title, n=2) >> length", tmp_path)
    ids = [f"{document.id}#{i}" for document in DOCUMENTS for i in range(4)]
    assert [one["_id"] for one in made] == ids
    for one in made:
        assert one["query"] == f"which text is number {one['sources'][0]['document'][1:]}"
        assert [call["prompt"] for call in one["calls"]] == [f"query_{one['kind']}"]


def test_writers_of_one_document_number_its_examples_through(
    session: Session, tmp_path: Path
) -> None:
    world = Corpus(Retriever(DOCUMENTS))
    made = _run(session, "random@3 >> write >> across(kind=topic)", tmp_path, world=world)
    assert [one["_id"].partition("#")[2] for one in made] == ["0", "1"] * 3
    for one in made:
        assert len(one["sources"]) == (1 if one["kind"] == "search" else 2)
        assert [call["prompt"] for call in one["calls"]] == [f"query_{one['kind']}"]
        last = one["sources"][-1]["document"]
        assert one["query"] == f"which text is number {last[1:]}"


def test_what_a_recipe_needs_is_looked_for_before_anything_is_asked(
    session: Session, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    with pytest.raises(InputError, match="there is no index"):
        _run(session, "all >> write >> round_trip", folder)
    with pytest.raises(InputError, match="--held-out"):
        _run(session, "all >> write >> guard", folder)
    assert not server.bodies("/completions")


class _Bare(Corpus):
    def language(self, text: str) -> Mapping[str, float]:
        raise MissingExtra("py3langid", "synth")


def test_so_is_a_package(session: Session, server: Server, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra):
        _run(session, "all >> write >> language", tmp_path, _Bare())
    assert not server.bodies("/completions")


def test_two_runs_into_one_folder_at_once(session: Session, tmp_path: Path) -> None:
    theirs = tmp_path / ".steps" / "0.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("half a fi")
    number = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run"):
        _run(session, "all >> write", tmp_path)
    assert theirs.read_text() == "half a fi"
    os.close(number)
    assert len(_run(session, "all >> write", tmp_path)) == len(DOCUMENTS)
    assert not theirs.exists()


@pytest.mark.slow
def test_the_map_is_of_documents_from_all_over_the_corpus(tmp_path: Path, session: Session) -> None:
    many = [Document(f"d{i}", f"number {i}") for i in range(3000)]
    world = _Drawing()
    recipe = parse_recipe("all >> distinct(least=0.01) >> write")
    synthesize(session, recipe, many, RunFolder(tmp_path), world=world)
    places = sorted(int(name[1:]) for name in world.drawn)
    assert len(set(places)) == 2000
    assert 1400 < sum(places) / len(places) < 1600


class _Drawing(Corpus):
    """Keeps the documents that are to be on the map."""

    drawn: Sequence[str] = ()

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"dense"})

    def topics(self, ids: Sequence[str]) -> dict[str, dict[str, object]]:
        self.drawn = ids
        return {}


def test_a_corpus_with_an_id_twice_is_refused(session: Session, tmp_path: Path) -> None:
    twice = [*DOCUMENTS, DOCUMENTS[3]]
    with pytest.raises(InputError, match="'d3' occurs twice"):
        synthesize(session, parse_recipe("all >> write"), iter(twice), RunFolder(tmp_path))
    assert not (tmp_path / "examples.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_folder_of_another_command_is_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"method": "yesno"}))
    with pytest.raises(InputError, match="another command"):
        _run(session, "all >> write", tmp_path)


async def _embed(_request: web.Request, body: Body) -> web.StreamResponse:
    """The topic of a text as a direction."""
    topics = [int(text.rsplit(maxsplit=1)[1]) for text in body["input"]]
    rows = [[float(topic == i) for i in range(7)] for topic in topics]
    data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return web.json_response({"data": data, "model": "vectors", "usage": {"prompt_tokens": 1}})


def test_each_search_uses_the_index_it_names(server: Server) -> None:
    server.script("/embeddings", _embed)
    url = server.url
    settings = Settings("oracle:", encoder="openai:e", encoder_url=url)
    with (
        Retriever(
            DOCUMENTS, first_stage="hybrid", encoder="openai:e", encoder_url=url
        ) as retriever,
        Session(settings, model=Oracle({}), embeds=True) as session,
    ):
        world = Corpus(retriever)
        assert world.kinds == {"bm25", "dense"}
        ids, vectors = world.vectors()
        assert (list(ids), vectors.shape) == ([d.id for d in DOCUMENTS], (len(DOCUMENTS), 7))
        found: dict[str, list[str]] = {}
        plans = [(by, world.search("number 9 of topic 3", 6, by)) for by in ("bm25", "dense")]
        session.run_sync(
            plans,
            lambda by, hits, _: found.update({by: [c.document.text.split()[2] for c in hits]}),
        )
    assert found["bm25"][0] == "9"
    assert {int(number) % 7 for number in found["dense"]} == {3}


def test_examples_for_a_writer_need_both_texts(tmp_path: Path) -> None:
    trec.write_jsonl(tmp_path / "a", [{"document": "d", "query": "q"}, {"document": "d"}])
    with pytest.raises(InputError, match="example 2"):
        shots(tmp_path / "a")
