"""In the place of a model where none is asked anything."""

from __future__ import annotations

from collections.abc import Sequence

from llmrank.backends.tokens import Estimate
from llmrank.errors import CapabilityError
from llmrank.request import Reply, Request, Tokenizer, Want


class Nobody:
    """A model that answers nothing, so that runs without a question need no model."""

    wants: frozenset[Want] = frozenset()
    batch = 1
    identity = "no model"
    tokenizer: Tokenizer = Estimate()
    counter: Tokenizer = tokenizer

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Raise `CapabilityError`."""
        raise CapabilityError("there is no model to ask")

    async def close(self) -> None:
        """Do nothing."""
