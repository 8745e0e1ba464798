"""Tevatron's loader and collator read the export (version 0.1, the one on PyPI)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainers.conftest import Exports

arguments = pytest.importorskip("tevatron.arguments")
loaders = pytest.importorskip("tevatron.data")
preprocessor = pytest.importorskip("tevatron.datasets.preprocessor")


def test_one_batch(exported: Exports, load: Callable[[Path], Any]) -> None:
    from transformers import CanineTokenizer

    rows = load(exported("tevatron", score="teacher") / "train.jsonl")
    scores = [passage["score"] for row in rows for passage in row["negative_passages"]]
    assert all(isinstance(score, float) for score in scores)
    tokenizer = CanineTokenizer()  # characters: the one at hand that needs no vocabulary
    ready = rows.map(preprocessor.TrainPreProcessor(tokenizer), remove_columns=rows.column_names)
    chosen = arguments.DataArguments(train_n_passages=4, q_max_len=32, p_max_len=64)
    state = SimpleNamespace(state=SimpleNamespace(epoch=0), args=SimpleNamespace(seed=0))
    dataset = loaders.TrainDataset(chosen, ready, tokenizer, state)
    collator = loaders.QPCollator(tokenizer, max_q_len=32, max_p_len=64)
    queries, passages = collator([dataset[0], dataset[1]])
    assert queries["input_ids"].shape == (2, 32)
    assert passages["input_ids"].shape == (2 * 4, 64)
