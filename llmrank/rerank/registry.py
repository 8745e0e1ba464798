"""The reranking methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmrank.plan import Plan
from llmrank.rerank.adaptive import adaptive
from llmrank.rerank.attention import attention
from llmrank.rerank.consistency import psc
from llmrank.rerank.graph import blitz
from llmrank.rerank.jointrank import jointrank
from llmrank.rerank.listwise import full, sliding
from llmrank.rerank.pairwise import prp, prp_allpair, prp_heapsort, prp_soft
from llmrank.rerank.partition import tdpart
from llmrank.rerank.passages import passages
from llmrank.rerank.pointwise import grade, likelihood, yesno
from llmrank.rerank.rating import acurank
from llmrank.rerank.setwise import setwise, setwise_bubblesort, setwise_insertion
from llmrank.rerank.tournament import listt5, tourrank
from llmrank.types import Ordering

Reranking = Callable[..., Plan[Ordering]]


@dataclass(frozen=True, slots=True)
class Family:
    """A method before its parameters are set.

    `calls`, `rounds` (calls that have to wait for one another) and `exact` (how many places at the
    top are right if every answer is) are formulas in the number n >= 2 of candidates and the
    parameters; one that begins with `<=` is a bound. An `inner` method ranks by another method,
    whose calls and rounds are `inner_calls(n)` and `inner_rounds(n)`; for `passages`, n is the
    number of passages there.
    """

    plan: Reranking
    calls: str
    rounds: str
    exact: str
    source: str
    inner: bool = False


_WINDOWS = "passes * (1 + max(0, ceil((n - window) / stride)))"
_ADAPTIVE = "ceil(n / k) - 1 if then == 'half' else sum(map(int, then.split('+')))"
_FURTHER = (
    "ceil(1.5 * log2(ceil(n / k))) if then == 'half' else len(then.split('+')) - (then == '0')"
)
_HEIGHT = "floor(log2((c - 2) * n) / log2(c - 1))"
_TOP_HEIGHT = "floor(log2((c - 2) * min(k, n)) / log2(c - 1))"
_INSERTIONS = "max(0, n - k) * (1 + ceil(log2(min(k, n))))"

_BLITZ = "<= 1 if n <= k else min(m, n) * ceil((n - 1) / (k - 1))"
_TREE = "(1 + max(0, ceil(log2((max(n, m) - r) / (m - r)) / log2(m / r))))"

METHODS: Mapping[str, Family] = {
    "adaptive": Family(
        adaptive,
        f"1 if n <= k else cover * ceil(n / k) + ({_ADAPTIVE})",
        f"<= 1 if n <= k else 1 + ({_FURTHER})",
        "n if n <= k else 0",
        "llmrank, docs/methods.md",
    ),
    "likelihood": Family(likelihood, "n", "1", "n", "UPR, arXiv 2204.07496"),
    "yesno": Family(yesno, "n", "1", "n", "Liang et al. 2022 (HELM), arXiv 2211.09110"),
    "grade": Family(grade, "n", "1", "n", "RG-S, arXiv 2310.14122; 1-5: InstUPR, arXiv 2403.16435"),
    "attention": Family(
        attention,
        "1 if window == 0 else ceil(n / window)",
        "1",
        "n if window == 0 or n <= window else 0",
        "ICR, arXiv 2410.02642",
    ),
    "full": Family(full, "1", "1", "n", "FullRank, arXiv 2412.14574"),
    "sliding": Family(
        sliding,
        _WINDOWS,
        _WINDOWS,
        "n if n <= window else min(n, passes * (window - stride))",
        "RankGPT, arXiv 2304.09542; by labels: FIRST, arXiv 2406.15657",
    ),
    "prp": Family(
        prp,
        "min(sliding, n - 1) * (2 * n - 1 - min(sliding, n - 1))",
        "n - 2 + min(sliding, n - 1)",
        "min(n, sliding)",
        "PRP-Sliding, arXiv 2306.17563",
    ),
    "prp_allpair": Family(prp_allpair, "n * (n - 1)", "1", "n", "PRP-Allpair, arXiv 2306.17563"),
    "prp_heapsort": Family(
        prp_heapsort,
        "<= 4 * (n - 1 + (min(k, n) - 1) * floor(log2(n)))",
        "<= floor(log2(n)) * (floor(log2(n)) + 2 * min(k, n) - 1)",
        "min(n, k)",
        "PRP-Sorting, arXiv 2306.17563",
    ),
    "prp_soft": Family(prp_soft, "n * (n - 1)", "1", "0", "InstUPR, arXiv 2403.16435"),
    "setwise": Family(
        setwise,
        f"<= votes * (floor((n - 1 + (c - 3) * {_HEIGHT}) / (c - 2))"
        f" + (min(k, n) - 1) * {_HEIGHT})",
        f"<= {_HEIGHT} * ({_HEIGHT} + 2 * min(k, n) - 1) / 2",
        "min(n, k)",
        "Setwise, arXiv 2310.09497",
    ),
    "setwise_bubblesort": Family(
        setwise_bubblesort,
        "<= votes * min(k, n - 1) * ceil((n - 1) / (c - 1))",
        "<= 2 * min(k, n - 1) - 2 + ceil((n - min(k, n - 1)) / (c - 1))",
        "min(n, k)",
        "Setwise, arXiv 2310.09497",
    ),
    "setwise_insertion": Family(
        setwise_insertion,
        f"<= floor((min(k, n) - 1 + (c - 3) * {_TOP_HEIGHT}) / (c - 2))"
        f" + (min(k, n) - 1) * {_TOP_HEIGHT} + {_INSERTIONS}",
        f"<= {_TOP_HEIGHT} * ({_TOP_HEIGHT} + 2 * min(k, n) - 1) / 2 + {_INSERTIONS}",
        "min(n, k)",
        "Setwise Insertion, arXiv 2504.10509",
    ),
    "tdpart": Family(
        tdpart,
        "<= 1 + ceil(max(0, n - window) / (window - pivot + 1))"
        " * (1 + ceil(max(0, n - window) / (window - 1)))",
        "<= 1 + 2 * ceil(max(0, n - window) / (window - pivot + 1))",
        "n if n <= window else pivot",
        "TDPart, arXiv 2405.14589",
    ),
    "tourrank": Family(
        tourrank,
        "<= tournaments * (ceil(n / window) + floor(2 * max(0, n - window) / window)"
        " + max(1, ceil(log2(n)) - 1) - 1)",
        "<= max(1, ceil(log2(n)) - 1)",
        "0",
        "TourRank, arXiv 2406.11678",
    ),
    "listt5": Family(
        listt5,
        f"<= 1 if n <= m else floor((n - r) / (m - r) + {_TREE} * (m + r - 1) / m)"
        f" + (ceil(min(n, k) / r) - 1) * (1 + min(2, r) * r * ({_TREE} - 2))",
        f"<= {_TREE} + (ceil(min(n, k) / r) - 1) * ({_TREE} - 1)",
        "min(n, k)",
        "ListT5, arXiv 2402.15838",
    ),
    "blitz": Family(
        blitz,
        _BLITZ,
        f"{_BLITZ} - floor(n / k) + 1",
        "min(n, m)",
        "BlitzRank, arXiv 2602.05448",
    ),
    "acurank": Family(
        acurank,
        "<= 1 if n <= window else budget",
        "<= 1 if n <= window else 1 + max(0, budget - ceil((n - 1) / window))",
        "n if n <= window else 0",
        "AcuRank, arXiv 2505.18512",
    ),
    "jointrank": Family(
        jointrank,
        "1 if n <= k else 2 * ceil(n ** 0.5) - (n in (3, 5)) if design == 'latin'"
        " else ceil((1 + (1 + 8 * n) ** 0.5) / 2) if design == 'triangular' else ceil(n * r / k)",
        "1",
        "n if n <= k else 0",
        "JointRank, arXiv 2506.22262",
    ),
    "psc": Family(
        psc,
        "<= samples * inner_calls(n)",
        "<= inner_rounds(n)",
        "inner_exact(n)",
        "permutation self-consistency, arXiv 2310.07712",
        inner=True,
    ),
    "passages": Family(
        passages,
        "inner_calls(n)",
        "inner_rounds(n)",
        "0",
        "MaxP and FirstP, arXiv 1905.09217",
        inner=True,
    ),
}
