"""llmrank: LLM reranking, query augmentation and synthetic training data.

from llmrank import Reranker

ranker = Reranker("openai:gpt-4.1-mini", method="sliding(window=20, stride=10)")
for hit in ranker.rank("what is dense retrieval?", passages)[:3]:
    ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrank.api import Caps, Reranker, Retriever, Session, Settings
    from llmrank.errors import LlmrankError
    from llmrank.types import Candidate, Document, Hit, Query, Ranking

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Caps",
    "Document",
    "Hit",
    "LlmrankError",
    "Query",
    "Ranking",
    "Reranker",
    "Retriever",
    "Session",
    "Settings",
    "__version__",
]

_HOMES = {
    "llmrank.api": ("Caps", "Reranker", "Retriever", "Session", "Settings"),
    "llmrank.errors": ("LlmrankError",),
    "llmrank.types": ("Candidate", "Document", "Hit", "Query", "Ranking"),
}


def __getattr__(name: str) -> object:
    # Public names are imported on first use, so that the command line starts fast.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'llmrank' has no attribute {name!r}")
