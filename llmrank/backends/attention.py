"""In-context reranking: how much attention a query's tokens pay to each passage before them.

The passages stand before the query, so what they compute does not depend on it: one forward pass
over them serves the query and a query without content, which go through the model together in a
second one. Chen et al. 2024 (ICR), arXiv 2410.02642; heads chosen: QRHead, arXiv 2506.09944.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from llmrank.errors import SpecError

if TYPE_CHECKING:
    import torch

EMPTY_QUERY = "N/A"
"""What stands in the query's place to see what a passage draws under any query."""

OUTLIER = 2.0
"""Tokens of a passage that lie this many deviations below its mean are not counted."""

# What transformers returns has no type that says which of its classes it is.
Tokenizer: TypeAlias = Any
Model: TypeAlias = Any
Cache: TypeAlias = Any
Config: TypeAlias = Any

Heads = Mapping[int, tuple[int, ...]]
"""The heads that count, by layer; all of them where it is empty."""


class Spans(NamedTuple):
    """A prompt as token ids, and where in it the passages stand.

    `prefix` ends where the query begins; `queries` are the query and the one without content. What
    follows them is left out: no token sees those behind it.
    """

    prefix: list[int]
    passages: list[range]
    queries: tuple[list[int], list[int]]

    @property
    def width(self) -> int:
        """Positions that the longer of the two sequences needs."""
        return len(self.prefix) + max(map(len, self.queries))


def parse_heads(text: str) -> Heads:
    """Read heads such as `12.3+14.7`: layer and head, both from 0."""
    found: dict[int, tuple[int, ...]] = {}
    for part in filter(None, text.split("+")):
        match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", part.strip())
        if match is None:
            raise SpecError(f"cannot read the heads {text!r}; write layer.head+layer.head")
        layer, head = int(match[1]), int(match[2])
        found[layer] = (*found.get(layer, ()), head)
    return found


def located(tokenizer: Tokenizer, text: str, marks: Sequence[tuple[int, int]]) -> Spans:
    """Token ids of a prompt, given where the passages and last the query stand in its characters.

    Space before the query goes with it, as most tokenizers join it to the first word.
    """
    *passages, (start, end) = marks
    head = text[:start].rstrip(" ")
    gap = text[len(head) : start]
    whole = tokenizer(head, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = whole["offset_mapping"]
    asked, empty = (_ids(tokenizer, gap + words) for words in (text[start:end], EMPTY_QUERY))
    return Spans(
        list(whole["input_ids"]), [_inside(offsets, *span) for span in passages], (asked, empty)
    )


def masses(model: Model, spans: Spans, heads: Heads) -> list[float]:
    """Calibrated attention mass of every passage, in two forward passes."""
    import torch

    _check(model.config, heads)
    prefix = torch.tensor([spans.prefix], device=model.device)
    with torch.inference_mode():
        # Without logits: the passages' keys and values are all that is kept of this pass.
        cache = model.base_model(input_ids=prefix, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        seen = _attended(model, spans, cache, heads)
    asked, empty = seen.double().cpu()
    return [_mass((asked - empty)[span.start : span.stop]) for span in spans.passages]


def _check(config: Config, heads: Heads) -> None:
    layers, each = config.num_hidden_layers, config.num_attention_heads
    if any(layer >= layers or max(chosen) >= each for layer, chosen in heads.items()):
        raise SpecError(f"the model has {layers} layers of {each} heads, counted from 0")


def _attended(model: Model, spans: Spans, cache: Cache, heads: Heads) -> torch.Tensor:
    """Attention of both queries to every token of the prefix: (2, prefix).

    Mean over the query's tokens, summed over layers and heads.
    """
    import torch

    known, width = len(spans.prefix), max(map(len, spans.queries))
    # The shorter row is filled up behind its end, where no token that counts can see it.
    rows = [[*row, *[0] * (width - len(row))] for row in spans.queries]
    ids = torch.tensor(rows, device=model.device)
    with _eager(model):
        out = model.base_model(
            input_ids=ids, past_key_values=cache, use_cache=True, output_attentions=True
        )
    total = torch.zeros((2, known), device=model.device)
    for layer, attention in enumerate(out.attentions):
        chosen = attention if not heads else attention[:, list(heads.get(layer, ()))]
        for row, query in enumerate(spans.queries):
            total[row] += chosen[row, :, : len(query), :known].float().mean(dim=1).sum(dim=0)
    return total


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Only the plain implementation of attention gives its weights."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _mass(scores: torch.Tensor) -> float:
    """Sum of a passage's token scores without the outliers far below their mean."""
    if len(scores) < 2:
        return float(scores.sum())
    lowest = scores.mean() - OUTLIER * scores.std()
    return float(scores[scores >= lowest].sum())


def _inside(offsets: Sequence[tuple[int, int]], start: int, end: int) -> range:
    """The tokens that hold some of these characters."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
