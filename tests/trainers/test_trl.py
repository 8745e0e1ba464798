"""One step of TRL's trainers on the formats that are for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import data
from tests.trainers.conftest import Exports

trl = pytest.importorskip("trl")

ARGUMENTS: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "logging_steps": 1,
    "bf16": False,
}


def _models(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _loss(trainer: Any) -> float:  # noqa: ANN401 - the library's own
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(loss)


def test_sft_learns_the_reply_alone(
    exported: Exports, load: Callable[[Path], Any], llama: Path, tmp_path: Path
) -> None:
    folder = exported("trl-sft")
    model, tokenizer = _models(llama)
    settings = trl.SFTConfig(output_dir=str(tmp_path / "sft"), max_length=None, **ARGUMENTS)
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=load(folder / "train.jsonl"),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    learnt = tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    reply = "".join(learnt.replace("[SEP]", "").split())
    replies = [row["completion"] for row in data.rows(folder / "train.jsonl")]
    written = {"".join(told[0]["content"].split()) for told in replies}  # type: ignore[index]
    assert reply in written
    assert math.isfinite(_loss(trainer))


def test_dpo_compares_a_kept_query_with_a_dropped_one(
    exported: Exports, load: Callable[[Path], Any], llama: Path, tmp_path: Path
) -> None:
    model, tokenizer = _models(llama)
    settings = trl.DPOConfig(output_dir=str(tmp_path / "dpo"), max_length=None, **ARGUMENTS)
    trainer = trl.DPOTrainer(
        model=model,
        args=settings,
        train_dataset=load(exported("trl-dpo") / "train.jsonl"),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 4  # two chosen, two rejected
    # Before the first step the model is the reference: no preference yet.
    assert _loss(trainer) == pytest.approx(math.log(2), abs=1e-3)
