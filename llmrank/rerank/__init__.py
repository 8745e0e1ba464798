"""Reranking methods as plans, and the names they are called by.

A method is a generator function plus one line in `METHODS`; its keyword parameters are the
parameters of its name. A `Method` is a value whose `str` can be parsed again:
`sliding(window=20, stride=10)@100`. Methods in a row are a `Cascade`: `yesno@100 >> sliding@20`.
"""

from llmrank.rerank.method import Cascade, Method, Ranker, parse
from llmrank.rerank.registry import METHODS, Family

__all__ = ["METHODS", "Cascade", "Family", "Method", "Ranker", "parse"]
