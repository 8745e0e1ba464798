"""BEIR's loader reads the export."""

from __future__ import annotations

import pytest

from tests.trainers.conftest import Exports

loader = pytest.importorskip("beir.datasets.data_loader")


def test_the_loader_finds_corpus_queries_and_qrels(exported: Exports) -> None:
    folder = exported("beir", split="train,dev")
    corpus, queries, qrels = loader.GenericDataLoader(data_folder=str(folder)).load(split="train")
    assert queries.keys() == qrels.keys()
    assert len(queries) == 7
    assert all(document in corpus for grades in qrels.values() for document in grades)
    assert qrels["tides-0#0"] == {"tides-0": 2, "tides-1": 1}
