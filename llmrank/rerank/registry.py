"""The reranking methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmrank.plan import Plan
from llmrank.rerank.listwise import sliding
from llmrank.rerank.pointwise import likelihood, yesno
from llmrank.types import Ordering

Reranking = Callable[..., Plan[Ordering]]


@dataclass(frozen=True, slots=True)
class Family:
    """A method before its parameters are set.

    `calls`, `rounds` (calls that have to wait for one another) and `exact` (how many places at the
    top are right if every answer is) are formulas in the number n >= 2 of candidates and the
    parameters; one that begins with `<=` is a bound. An `inner` method ranks by another method,
    whose calls and rounds are `inner_calls(n)` and `inner_rounds(n)`.
    """

    plan: Reranking
    calls: str
    rounds: str
    exact: str
    source: str
    inner: bool = False


_WINDOWS = "passes * (1 + max(0, ceil((n - window) / stride)))"

METHODS: Mapping[str, Family] = {
    "likelihood": Family(likelihood, "n", "1", "n", "UPR, arXiv 2204.07496"),
    "yesno": Family(yesno, "n", "1", "n", "Liang et al. 2022 (HELM), arXiv 2211.09110"),
    "sliding": Family(
        sliding,
        _WINDOWS,
        _WINDOWS,
        "n if n <= window else min(n, passes * (window - stride))",
        "RankGPT, arXiv 2304.09542; by labels: FIRST, arXiv 2406.15657",
    ),
}
