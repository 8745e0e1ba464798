"""Sampling from a model in this process that does not depend on what else is in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrank.request import Request

if TYPE_CHECKING:
    import torch


class GumbelSampling:
    """Sampling as greedy choice: adding seeded Gumbel noise to the log-probabilities of a row and
    taking the maximum draws from its distribution, so a sample depends on its own seed alone and
    not on what else is in the batch."""

    def __init__(self, requests: Sequence[Request]) -> None:
        import torch

        self._params = [request.params for request in requests]
        self._noise = [
            torch.Generator().manual_seed(params.seed or 0) if params.temperature else None
            for params in self._params
        ]
        self._step = 0
        self.broken: dict[int, int] = {}
        """The first step, by row, at which a score was not a number."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        out = scores.float().clone()
        for row in out.isnan().any(-1).nonzero().flatten().tolist():
            self.broken.setdefault(row, self._step)
        self._step += 1
        for row, (params, source) in enumerate(zip(self._params, self._noise, strict=True)):
            if source is None:
                continue
            logprobs = nucleus((out[row] / params.temperature).log_softmax(-1), params.top_p)
            uniform = torch.rand(logprobs.shape, generator=source).clamp_min(1e-20)
            out[row] = logprobs - (-uniform.log()).log().to(logprobs.device)
        return out


def nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Leave only the smallest set of tokens that holds `top_p` of the probability."""
    if top_p >= 1.0:
        return logprobs
    ordered, indices = logprobs.sort(descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = logprobs.clone()
    kept[indices[before >= top_p]] = float("-inf")
    return kept
