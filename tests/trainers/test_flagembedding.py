"""FlagEmbedding's datasets and collators read the export, with and without scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import Exports

reranker = pytest.importorskip("FlagEmbedding.abc.finetune.reranker")
embedder = pytest.importorskip("FlagEmbedding.abc.finetune.embedder")


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    """Their loaders ask which of several processes they are."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("distil", [False, True])
def test_reranker(exported: Exports, tokenizer: Any, tmp_path: Path, distil: bool) -> None:  # noqa: ANN401
    folder = exported("flagembedding", **({"score": "teacher"} if distil else {}))
    arguments = reranker.AbsRerankerDataArguments(
        train_data=[str(folder)],
        cache_path=str(tmp_path / "cache"),
        train_group_size=4,
        knowledge_distillation=distil,
    )
    dataset = reranker.AbsRerankerTrainDataset(arguments, tokenizer)
    batch = reranker.AbsRerankerCollator(tokenizer)([dataset[0], dataset[1]])
    assert batch["pair"]["input_ids"].shape[0] == 2 * 4
    assert (batch["teacher_scores"] is not None) == distil
    assert not distil or len(batch["teacher_scores"]) == 2 * 4


@pytest.mark.parametrize("distil", [False, True])
def test_embedder(exported: Exports, tokenizer: Any, tmp_path: Path, distil: bool) -> None:  # noqa: ANN401
    folder = exported("flagembedding", **({"score": "teacher"} if distil else {}))
    arguments = embedder.AbsEmbedderDataArguments(
        train_data=[str(folder / "train.jsonl")],
        cache_path=str(tmp_path / "cache"),
        train_group_size=4,
        knowledge_distillation=distil,
    )
    dataset = embedder.AbsEmbedderTrainDataset(arguments, tokenizer)
    batch = embedder.AbsEmbedderCollator(tokenizer)([dataset[0], dataset[1]])
    assert batch["queries"]["input_ids"].shape[0] == 2
    assert batch["passages"]["input_ids"].shape[0] == 2 * 4
    assert (batch["teacher_scores"] is not None) == distil
