"""ColBERT's batcher reads the three files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers.conftest import Exports

infra = pytest.importorskip("colbert.infra")


@pytest.mark.parametrize("score", [None, "teacher"])
def test_one_batch(exported: Exports, bert: Path, score: str | None) -> None:
    batcher = pytest.importorskip("colbert.training.lazy_batcher")
    folder = exported("colbert", negatives=3, score=score)
    files = ("triples.train.jsonl", "queries.train.tsv", "collection.tsv")
    settings = infra.ColBERTConfig(
        bsize=2, nway=4, accumsteps=1, checkpoint=str(bert), doc_maxlen=60
    )
    batches = batcher.LazyBatcher(settings, *(str(folder / name) for name in files))
    ((queries, passages, scores),) = next(batches)
    assert queries[0].shape == (2, settings.query_maxlen)
    assert passages[0].shape[0] == 2 * 4
    assert len(scores) == (2 * 4 if score else 0)
