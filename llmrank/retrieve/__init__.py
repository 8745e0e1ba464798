"""First-stage retrieval: analysers, BM25, exact dense search and fusion."""

from llmrank.retrieve._folder import distinct
from llmrank.retrieve.analysis import ANALYZERS, english, plain
from llmrank.retrieve.bm25 import BM25Index, score_passages
from llmrank.retrieve.dense import DenseIndex
from llmrank.retrieve.fusion import minmax, reciprocal_rank, zscore

__all__ = [
    "ANALYZERS",
    "BM25Index",
    "DenseIndex",
    "distinct",
    "english",
    "minmax",
    "plain",
    "reciprocal_rank",
    "score_passages",
    "zscore",
]
