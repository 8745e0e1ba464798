"""PyLate joins the three files and trains a step of distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import data
from tests.trainers.conftest import Exports

losses = pytest.importorskip("pylate.losses")
models = pytest.importorskip("pylate.models")
utils = pytest.importorskip("pylate.utils")


def test_knowledge_distillation(
    exported: Exports, load: Callable[[Path], Any], bert: Path, tmp_path: Path
) -> None:
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    folder = exported("pylate", negatives=2, scale="minmax")
    train, queries, documents = (
        load(folder / f"{name}.jsonl") for name in ("train", "queries", "documents")
    )
    train.set_transform(utils.KDProcessing(queries, documents, n_ways=3).transform)
    for row, told in zip(train, data.rows(folder / "train.jsonl"), strict=True):
        assert row["scores"] == told["scores"]
        assert len(row["documents"]) == 3
        assert all(row["documents"])  # what KDProcessing does not find becomes an empty text
        assert row["query"].startswith("what is known of")
    model = models.ColBERT(str(bert), device="cpu", embedding_size=16)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "trained"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
            logging_steps=1,
            remove_unused_columns=False,
        ),
        train_dataset=train,
        loss=losses.Distillation(model),
        data_collator=utils.ColBERTCollator(model.tokenize),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["query_input_ids"].shape[0] == 2
    assert batch["documents_input_ids"].shape[0] == 2 * 3
    assert batch["label"].shape == (2, 3)
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(loss)


def test_contrastive(exported: Exports, load: Callable[[Path], Any], bert: Path) -> None:
    rows = load(exported("st-triplets") / "train.jsonl")
    model = models.ColBERT(str(bert), device="cpu", embedding_size=16)
    collator = utils.ColBERTCollator(model.tokenize)
    batch = collator([rows[0], rows[1]])
    features = [
        {key.removeprefix(name): value for key, value in batch.items() if key.startswith(name)}
        for name in ("anchor_", "positive_", "negative_")
    ]
    loss = losses.Contrastive(model)(features)
    loss.backward()
    assert math.isfinite(float(loss))
