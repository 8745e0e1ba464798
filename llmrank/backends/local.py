"""A causal language model in this process, run by transformers: exact label probabilities, query
likelihood and text, without a server or a key."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import llmrank.backends.attention as attention
from llmrank.backends._batching import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, TEXT_TOKENS, Row, batches
from llmrank.backends._sampling import GumbelSampling
from llmrank.backends.files import fingerprint
from llmrank.backends.gguf import converted, packaged_default
from llmrank.backends.tokens import Pretrained, chat_text
from llmrank.errors import BackendError, CapabilityError, MissingExtra, SpecError
from llmrank.request import Message, Reply, Request, Tokenizer, Want
from llmrank.types import Usage

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Apache-2.0, 135 million parameters: ranks by likelihood on a laptop, and little else."""

UNLIMITED = 1 << 20
"""Positions of a model that states no limit."""

OPENED, TAIL = "<think>", 8
"""How chat templates open a thought, and in how many tokens at the end of a prompt."""


R = TypeVar("R", bound=Row)


class InProcess(Generic[R]):
    """A transformers model on the CPU or a GPU, whatever its architecture.

    A subclass says how a request becomes a row, which rows it must refuse, how the model is loaded
    and what computes a batch of rows for each want. `kind` is the word before the colon of its
    identity; `source` is a folder, a GGUF file or a model id of the Hugging Face hub.
    """

    kind: str
    wants: frozenset[Want]

    def __init__(self, source: str, *, dtype: str, device: str) -> None:
        if util.find_spec("torch") is None or util.find_spec("transformers") is None:
            raise MissingExtra("a local model", "local")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise SpecError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
        self.name = self._source = source
        path = Path(source)
        if not path.exists() and (path.is_absolute() or path.suffix == ".gguf"):
            raise BackendError(f"there is no model at {source}")
        # A hub id names its weights; a path does not.
        self._content = f"#{fingerprint(path)}" if path.exists() else ""
        self._dtype, self._device = dtype, device

    @property
    def identity(self) -> str:
        """The model, what tells its files from others, and the number type it computes in."""
        return f"{self.kind}:{self.name}{self._content},dtype={self._dtype}"

    @property
    def batch(self) -> int:
        """Requests per call: enough to sort by length, few enough to lose little when killed."""
        return 64 if self._place == "cpu" else 1024

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; computes while the caller waits."""
        self._check_wants(requests)
        rows = [self._row(request) for request in requests]
        refused = {i: self._refused(row) for i, row in enumerate(rows)}
        replies = {i: Reply(error=problem) for i, problem in refused.items() if problem}
        for want, run in self._compute.items():
            chosen = [i for i, r in enumerate(rows) if r.request.want == want and i not in replies]
            budget = max(self._budget, TEXT_TOKENS) if want == "text" else self._budget
            for batch in batches(chosen, rows, budget):
                await asyncio.sleep(0)  # so that an interruption can arrive between batches
                started = time.perf_counter()
                done = run([rows[i] for i in batch])
                seconds = (time.perf_counter() - started) / len(batch)
                for i, reply in zip(batch, done, strict=True):
                    sound = self._overflow() if _holds_nan(reply) else reply
                    replies[i] = replace(sound, model=self.name, seconds=seconds)
        return [replies[i] for i in range(len(requests))]

    def _check_wants(self, requests: Sequence[Request]) -> None:
        for missing in {request.want for request in requests} - self.wants:
            can = ", ".join(sorted(self.wants))
            raise CapabilityError(f"{self.identity} cannot give {missing}; it gives: {can}")

    def _overflow(self) -> Reply:
        """What stands for a reply computed from values that are not numbers."""
        remedy = "" if self._dtype == "float32" else "; dtype=float32 may not"
        return Reply(error=f"{self.name} computes NaN, no numbers, in {self._dtype}{remedy}")

    async def close(self) -> None:
        """Nothing to let go of."""

    @cached_property
    def tokenizer(self) -> Pretrained:
        """How the model reads text; its weights are not loaded for that."""
        return Pretrained(self._folder)

    @property
    def counter(self) -> Tokenizer:
        """The same: no server is asked for it."""
        return self.tokenizer

    def _folder(self) -> str:
        """What transformers loads."""
        return self._source

    @property
    def _compute(self) -> Mapping[Want, Callable[[Sequence[R]], list[Reply]]]:
        raise NotImplementedError

    def _row(self, request: Request) -> R:
        raise NotImplementedError

    def _refused(self, row: R) -> str:
        """What is wrong with a row that the model cannot read; empty where it can."""
        raise NotImplementedError

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Tokenizer and model."""
        raise NotImplementedError

    @cached_property
    def _place(self) -> str:
        import torch

        return self._device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _budget(self) -> int:
        """Tokens of a batch, with the padding."""
        return CPU_BATCH_TOKENS if self._place == "cpu" else GPU_BATCH_TOKENS

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from safetensors import SafetensorError
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            tokenizer, model = self._load(getattr(torch, self._dtype))
            model = model.to(self._place).eval()
        except (
            AssertionError,
            KeyError,
            OSError,
            RuntimeError,
            SafetensorError,
            ValueError,
        ) as error:
            raise BackendError(
                f"cannot load the {self.kind} model {self._source!r}: {error}"
            ) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise BackendError(f"the tokenizer of {self.name} has no token to pad or to end with")
        # Classifiers made from causal models look for it to find where a row ends.
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model

    @property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - transformers' tokenizers share no useful type
        return self._loaded[0]

    @property
    def _model(self) -> Any:  # noqa: ANN401 - as above
        return self._loaded[1]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class Tokens(NamedTuple):
    """A request as token ids: what the model reads, and the continuation to score."""

    request: Request
    prompt: list[int]
    target: list[int]

    @property
    def tokens(self) -> list[int]:
        """Prompt and target as one sequence."""
        return self.prompt + self.target

    @property
    def generated(self) -> int:
        """The most tokens that may be generated."""
        return self.request.params.max_tokens if self.request.want == "text" else 0

    @property
    def stops(self) -> tuple[str, ...]:
        """Pieces of text that end what is generated."""
        return self.request.params.sent_stops

    @property
    def width(self) -> int:
        """Positions that the request needs, what it may generate included."""
        return len(self.prompt) + len(self.target) + self.generated


class LocalBackend(InProcess[Tokens]):
    """A transformers causal model on the CPU or a GPU.

    `model` is a folder, a GGUF file, a model id of the Hugging Face hub, or empty for the default
    model: the packaged one if it is installed, else the same model from the hub. In float32 a
    score does not depend on what else is in its batch (to 1e-3); in bfloat16 it does, by about 0.1
    in a log-probability, for three times the speed on CPUs that compute it natively.
    """

    kind = "local"
    pads = "left"
    """The side on which rows are padded: on the left they end together."""
    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood", "attention"})

    def __init__(
        self, model: str = "", *, dtype: str = "float32", device: str = "", heads: str = ""
    ) -> None:
        packaged = packaged_default() if not model else None
        super().__init__(str(packaged or model or DEFAULT_MODEL), dtype=dtype, device=device)
        if packaged:
            self.name = packaged.stem
        self._heads = attention.parse_heads(heads)
        if heads:
            self._content += f",heads={heads}"

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return positions(self._model.config)

    @property
    def _compute(self) -> Mapping[Want, Callable[[Sequence[Tokens]], list[Reply]]]:
        return {
            "likelihood": self._likelihood,
            "labels": self._labels,
            "text": self._text,
            "attention": self._attention,
        }

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = self._folder()
        tokenizer = AutoTokenizer.from_pretrained(source)
        return tokenizer, AutoModelForCausalLM.from_pretrained(source, dtype=dtype)

    def _folder(self) -> str:
        path = Path(self._source)
        return str(converted(path)) if path.suffix == ".gguf" else self._source

    def _row(self, request: Request) -> Tokens:
        target = self._ids(request.target) if request.target else []
        if not request.messages:
            return Tokens(request, list(self._tokenizer(request.prompt)["input_ids"]), target)
        return Tokens(request, self._chat(request.messages, request.params.thinking), target)

    def _chat(self, messages: Sequence[Message], thinking: int = 0) -> list[int]:
        return self._ids(self._chat_text(messages, thinking))

    def _chat_text(self, messages: Sequence[Message], thinking: int = 0) -> str:
        """A chat as the model reads it, up to where the reply begins."""
        if not self._tokenizer.chat_template:
            raise CapabilityError(f"{self.name} has no chat template; use a plain-text prompt")
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        return chat_text(self._tokenizer, turns, thinks=thinking > 0)

    def _refused(self, row: Tokens) -> str:
        if not row.prompt:
            return "the prompt is empty"
        return "" if row.width <= self.context else self._too_long(row.width)

    def _too_long(self, width: int) -> str:
        return (
            f"{width} tokens do not fit {self.name}, which takes {self.context}; "
            "show fewer or shorter passages"
        )

    def _likelihood(self, rows: Sequence[Tokens]) -> list[Reply]:
        replies = []
        for row, steps in zip(rows, self._target_logprobs(rows), strict=True):
            picked = steps[range(len(row.target)), row.target].double()
            usage = Usage(prompt_tokens=len(row.tokens))
            replies.append(Reply(logprob=float(picked.sum()), tokens=len(row.target), usage=usage))
        return replies

    def _target_logprobs(self, rows: Sequence[Tokens]) -> list[torch.Tensor]:
        """For each row, log-probabilities before every token of its target: (tokens, vocab)."""
        longest = max(len(row.target) for row in rows)
        # The last position predicts what follows the target, so it is left out.
        return [
            logprobs[-len(row.target) - 1 : -1]
            for row, logprobs in zip(rows, self._next_logprobs(rows, longest + 1), strict=True)
        ]

    def _labels(self, rows: Sequence[Tokens]) -> list[Reply]:
        replies = []
        for row, logprobs in zip(rows, self._first_logprobs(rows).cpu(), strict=True):
            usage = Usage(prompt_tokens=len(row.prompt))
            ids = self._label_ids(row.request)
            read = {form: float(logprobs[token]) for token, form in ids.items()}
            replies.append(Reply(label_logprobs=read, usage=usage))
        return replies

    def _label_ids(self, request: Request) -> dict[int, str]:
        """The forms that are one token, by that token."""
        seen: dict[int, str] = {}
        for label, forms in request.labels.items():
            found = [(self._single_token(form), form) for form in forms]
            known = [(token, form) for token, form in found if token is not None]
            if not known:
                raise CapabilityError(f"the label {label!r} is no single token of {self.name}")
            # Some tokenizers read a form with and without a space as one token: it counts once.
            for token, form in known:
                seen.setdefault(token, form)
        return seen

    def _single_token(self, form: str) -> int | None:
        """The token that a form is; none where it is several or not in the vocabulary."""
        ids = self._ids(form)
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    def _first_logprobs(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """Log-probabilities of the first token of the reply: (rows, vocab)."""
        return self._next_logprobs(rows, 1)[:, -1]

    def _next_logprobs(self, rows: Sequence[Tokens], keep: int) -> torch.Tensor:
        """Log-probabilities of the next token at the last `keep` positions: (rows, keep, vocab)."""
        return self._next_logits(rows, keep).log_softmax(-1)

    def _next_logits(self, rows: Sequence[Tokens], keep: int) -> torch.Tensor:
        """Scores of the next token at the last `keep` positions, float32: (rows, keep, vocab)."""
        import torch

        ids, mask = self._padded([row.tokens for row in rows])
        with torch.inference_mode():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=keep,
                use_cache=False,
            )
            logits: torch.Tensor = out.logits.float()
        return logits

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask of rows, padded to the width of the longest."""
        import torch

        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        ids = [self._beside(row, [pad] * (width - len(row))) for row in rows]
        mask = [self._beside([1] * len(row), [0] * (width - len(row))) for row in rows]
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _beside(self, row: Sequence[int], padding: list[int]) -> list[int]:
        return [*padding, *row] if self.pads == "left" else [*row, *padding]

    def _attention(self, rows: Sequence[Tokens]) -> list[Reply]:
        """One prompt at a time: its passages are as long as a batch."""
        replies = []
        for request in (row.request for row in rows):
            text = self._chat_text(request.messages) if request.messages else request.prompt
            shown = request.messages[request.spans[0].turn].content if request.messages else text
            begin = text.rfind(shown)
            if begin < 0:
                replies.append(Reply(error=f"the chat template of {self.name} changes messages"))
                continue
            marks = [(begin + start, begin + end) for _, start, end in request.spans]
            spans = attention.located(self._tokenizer, text, marks)
            found = attention.masses(self._model, spans, self._heads)
            usage = Usage(prompt_tokens=len(spans.prefix) + sum(map(len, spans.queries)))
            replies.append(Reply(attention=tuple(found), usage=usage))
        return replies

    def _text(self, rows: Sequence[Tokens]) -> list[Reply]:
        import torch

        ids, mask = self._padded([row.prompt for row in rows])
        sampling = GumbelSampling([row.request for row in rows])
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(row.request.params.max_tokens for row in rows),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._tokenizer.pad_token_id,
                logits_processor=[sampling],
                stop_strings=sorted({mark for row in rows for mark in row.stops}) or None,
                tokenizer=self._tokenizer,
            )
        new = out[:, self._begins(ids) :].tolist()
        replies = [self._written(row, tokens) for row, tokens in zip(rows, new, strict=True)]
        return [
            self._overflow()
            if sampling.broken.get(i, math.inf) < reply.usage.completion_tokens
            else reply
            for i, reply in enumerate(replies)
        ]

    def _begins(self, ids: torch.Tensor) -> int:
        """Where in what `generate` returns for these ids the reply begins."""
        return int(ids.shape[1])

    def _written(self, row: Tokens, tokens: list[int]) -> Reply:
        params = row.request.params
        tokens = tokens[: params.max_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._begun(row) + self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        cuts = [at for at in (text.find(mark) for mark in row.stops) if at >= 0]
        finish = "length" if end is None and not cuts else "stop"
        written = len(tokens) if end is None else end + 1
        usage = Usage(prompt_tokens=len(row.prompt), completion_tokens=written)
        return Reply(text=text[: min(cuts)] if cuts else text, finish=finish, usage=usage)

    def _begun(self, row: Tokens) -> str:
        """What the chat template has written of the reply: some open a thought for the model."""
        if not row.request.messages:
            return ""
        tail = self._tokenizer.decode(row.prompt[-TAIL:]).rstrip()
        return OPENED if tail.endswith(OPENED) else ""

    @cached_property
    def _ends(self) -> frozenset[int]:
        configured = self._model.generation_config.eos_token_id
        several = configured if isinstance(configured, list) else [configured]
        return frozenset({*several, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id})


def positions(config: Any) -> int:  # noqa: ANN401 - transformers' configurations are untyped
    """The most positions a model can tell apart; `UNLIMITED` where it states no number of them."""
    stated = getattr(config, "max_position_embeddings", None)
    return int(stated) if stated and stated > 0 else UNLIMITED


def _holds_nan(reply: Reply) -> bool:
    seen = (*reply.label_logprobs.values(), *(reply.attention or ()), reply.logprob or 0.0)
    return any(map(math.isnan, seen))
