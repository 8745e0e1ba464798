"""Is generated data worth training on? A retriever before and after, on judged queries.

    python -m benchmarks.training RUN --data DATA --out FOLDER

RUN is a folder of `llmrank generate` on the corpus of DATA, with negatives; DATA is a collection in
BEIR's layout with `qrels.tsv` whose queries the run has not seen (`--held-out` and `guard`). The
small local embedding model is trained on the exported n-tuples, or with `--distil` on the scores of
the stage `teacher`, by sentence-transformers' own losses, on at most `--most` rows, on the CPU. It
needs `pip install 'llmrank[train]'`. Differences are over the same queries with a 95 % bootstrap
interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrank import Retriever, api, evaluate, trec
from llmrank.backends.encoder import SentenceEncoder

MEASURE = evaluate.MEASURES[0]
TOKENS = 256  # of a text; the model was trained on no more
SEED = 1


def main() -> None:
    """Export, train, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--most", type=int, default=1000)
    given = parser.parse_args()
    started = time.monotonic()
    rows = exported(given)
    trained = train(rows, given)
    seconds = time.monotonic() - started
    _write(f"{len(rows)} rows, {seconds:.0f} s of training\n")
    _write("| retriever | nDCG@10 | over BM25 | won/lost | over the untrained | won/lost |")
    _write("|---|---:|---|---:|---|---:|")
    found = {
        "BM25": measured(given.data, Retriever(trec.read_corpus(given.data))),
        "untrained": measured(given.data, dense(given.data, given.out / "untrained", None)),
        "trained": measured(given.data, dense(given.data, given.out / "trained-index", trained)),
    }
    for name, values in found.items():
        mean = sum(values.values()) / len(values)
        beside = " | ".join(compared(values, found[other]) for other in ("BM25", "untrained"))
        _write(f"| {name} | {mean:.4f} | {beside} |")


def exported(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the training split, the first `most`."""
    format = "st-kldiv" if given.distil else "st-ntuples"
    folder = given.out / format
    api.export(given.run, format, folder, negatives=given.negatives)
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[: given.most]]


def train(rows: list[dict[str, Any]], given: argparse.Namespace) -> Path:
    """The folder of the small embedding model, trained on the rows."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        DistillKLDivLoss,
        MultipleNegativesRankingLoss,
    )

    model: SentenceTransformer = SentenceEncoder().model
    model.max_seq_length = TOKENS
    loss = DistillKLDivLoss(model) if given.distil else MultipleNegativesRankingLoss(model)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(given.out / "checkpoints"),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=given.batch,
        learning_rate=given.rate,
        warmup_steps=0.1,
        seed=SEED,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
    )
    data = Dataset.from_list(rows)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    target = given.out / "trained"
    model.save_pretrained(str(target))
    return Path(target)


def dense(data: Path, index: Path, model: Path | None) -> Retriever:
    """Dense retrieval with the packaged model or a trained one."""
    encoder = "local" if model is None else f"local:{model}"
    corpus = trec.read_corpus(data)
    return Retriever(corpus, first_stage="dense", index=index, encoder=encoder)


def measured(data: Path, retriever: Retriever) -> dict[str, float]:
    """nDCG@10 of every judged query."""
    qrels = trec.read_qrels(data / "qrels.tsv")
    queries = [query for query in trec.read_queries(data) if query.id in qrels]
    with retriever:
        hits = retriever.search_many(queries, 100)
    run = {
        query.id: [(one.document.id, one.score) for one in found]
        for query, found in zip(queries, hits, strict=True)
    }
    return dict(evaluate.measure(run, qrels, (MEASURE,))[MEASURE])


def compared(values: Mapping[str, float], others: Mapping[str, float]) -> str:
    """The difference, its interval, and the queries won and lost."""
    if values is others:
        return " | "
    found = evaluate.compare(values, others)
    interval = "" if found.interval is None else " [{:+.4f}, {:+.4f}]".format(*found.interval)
    return f"{found.difference:+.4f}{interval} | {found.wins}/{found.losses}"


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
