"""One step of sentence-transformers' own trainers on every format that is for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import Exports

pytest.importorskip("datasets")
st = pytest.importorskip("sentence_transformers", minversion="6")

BATCH = 4


def _step(trainer: type[Any], arguments: type[Any], folder: Path, *given: Any) -> Any:  # noqa: ANN401
    """Train for one step; the trainer, whose one loss was a number."""
    model, loss, rows = given
    settings = arguments(
        output_dir=str(folder / "trained"),
        max_steps=1,
        per_device_train_batch_size=BATCH,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        logging_steps=1,
    )
    made = trainer(model=model, args=settings, train_dataset=rows, loss=loss)
    before = {name: value.clone() for name, value in model.named_parameters()}
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 1
    assert math.isfinite(losses[0])
    assert any((before[name] != value).any() for name, value in model.named_parameters())
    return made


def _encoder(folder: Path) -> Any:  # noqa: ANN401 - the library's own
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(folder))
    return SentenceTransformer(
        modules=[words, Pooling(words.get_embedding_dimension())], device="cpu"
    )


@pytest.mark.parametrize(
    ("format", "loss", "options", "columns"),
    [
        ("st-pairs", "MultipleNegativesRankingLoss", {}, 2),
        ("st-triplets", "MultipleNegativesRankingLoss", {}, 3),
        ("st-triplets", "TripletLoss", {}, 3),
        ("st-ntuples", "MultipleNegativesRankingLoss", {}, 5),
        ("st-ntuples", "CachedMultipleNegativesRankingLoss", {"negatives": 2}, 4),
        ("st-margin", "MarginMSELoss", {}, 3),
        ("st-margin", "MarginMSELoss", {"scale": "standard"}, 3),
        ("st-kldiv", "DistillKLDivLoss", {}, 5),
        ("st-kldiv", "DistillKLDivLoss", {"negatives": 2, "scale": "minmax"}, 4),
        ("st-kldiv", "MarginMSELoss", {"negatives": 2}, 4),
    ],
)
def test_bi_encoder(
    exported: Exports,
    load: Callable[[Path], Any],
    bert: Path,
    tmp_path: Path,
    format: str,
    loss: str,
    options: dict[str, Any],
    columns: int,
) -> None:
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    rows = load(exported(format, **options) / "train.jsonl")
    model = _encoder(bert)
    trainer = _step(
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        tmp_path,
        model,
        getattr(losses, loss)(model),
        rows,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = [name for name in batch if name.endswith("_input_ids")]
    assert len(inputs) == columns
    assert all(batch[name].shape[0] == BATCH for name in inputs)
    if format == "st-kldiv":
        assert batch["label"].shape == (BATCH, columns - 1)
    elif format == "st-margin":
        assert batch["label"].shape == (BATCH,)
    else:
        assert "label" not in batch


@pytest.mark.parametrize(
    ("format", "loss", "options"),
    [
        ("st-ce", "BinaryCrossEntropyLoss", {}),
        ("st-ce", "MSELoss", {"score": "teacher", "scale": "minmax"}),
        ("st-margin", "MarginMSELoss", {}),
        ("st-kldiv", "MarginMSELoss", {"negatives": 2}),
        ("st-triplets", "MultipleNegativesRankingLoss", {}),
        ("st-listwise", "LambdaLoss", {}),
        ("st-listwise", "RankNetLoss", {"score": "teacher"}),
        ("st-listwise", "ListNetLoss", {"score": "teacher"}),
        ("st-listwise", "ListMLELoss", {}),
        ("st-listwise", "PListMLELoss", {"score": "teacher", "scale": "standard"}),
        ("st-listwise", "ADRMSELoss", {"score": "teacher"}),
    ],
)
def test_cross_encoder(
    exported: Exports,
    load: Callable[[Path], Any],
    bert: Path,
    tmp_path: Path,
    format: str,
    loss: str,
    options: dict[str, Any],
) -> None:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    rows = load(exported(format, **options) / "train.jsonl")
    model = CrossEncoder(str(bert), num_labels=1, device="cpu")
    trainer = _step(
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        tmp_path,
        model,
        getattr(losses, loss)(model),
        rows,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert all(len(column) == BATCH for column in batch.values())
    if format == "st-listwise":
        assert [len(docs) for docs in batch["docs"]] == [len(row) for row in batch["label"]]


@pytest.mark.parametrize(
    ("format", "loss"), [("st-kldiv", "DistillKLDiv"), ("st-margin", "MarginMSE")]
)
def test_late_interaction(
    exported: Exports,
    load: Callable[[Path], Any],
    bert: Path,
    tmp_path: Path,
    format: str,
    loss: str,
) -> None:
    from sentence_transformers import (
        MultiVectorEncoder,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
    )
    from sentence_transformers.multi_vector_encoder import losses

    model = MultiVectorEncoder(str(bert), device="cpu")
    wanted = getattr(losses, f"MultiVector{loss}Loss")(model)
    rows = load(exported(format) / "train.jsonl")
    arguments = MultiVectorEncoderTrainingArguments
    _step(MultiVectorEncoderTrainer, arguments, tmp_path, model, wanted, rows)
