"""A causal language model in this process, run by vLLM: full batches, shared prefixes computed
once, no server."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import util
from typing import TYPE_CHECKING, Any

from llmrank.backends.dialects import MOST_IDS
from llmrank.backends.local import LocalBackend, Tokens
from llmrank.backends.tokens import Pretrained
from llmrank.errors import BackendError, CapabilityError, MissingExtra, SpecError
from llmrank.request import Reply, Request, Want
from llmrank.types import Usage

if TYPE_CHECKING:
    import vllm

QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Environment of vLLM where it is not set otherwise: it tells nobody that it is used, and writes
errors only."""

CPU_MEMORY, CPU_BLOCK = 0.2, 32
"""On a CPU: the share of the memory that is taken, and the tokens that a prefix is cached by."""


_READ: Mapping[str, Any] = {"max_tokens": 1, "detokenize": False}
_SCORE_ALL = {**_READ, "prompt_logprobs": 0}
_SCORE_THE_REST = {**_SCORE_ALL, "skip_reading_prefix_cache": False}


class VllmBackend(LocalBackend):
    """A causal model that vLLM runs in this process, on the CPU or on GPUs.

    `model` is a folder, a GGUF file, a hub id, or empty for the small default model. `context` is
    the most tokens that a prompt and its reply may have together, by default what the model states;
    `memory` the share of the device's memory that vLLM takes, by default its own (on a CPU a
    fifth); `gpus` over how many GPUs a layer is spread. Labels are read by their exact token ids,
    and a likelihood at exact token boundaries. Scores depend a little on what else is in a batch.

    vLLM starts processes of its own when the first request comes: a script that uses this must
    guard what it runs with `if __name__ == "__main__"`.
    """

    kind = "vllm-offline"
    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood"})

    def __init__(
        self,
        model: str = "",
        *,
        dtype: str = "bfloat16",
        context: int = 0,
        memory: float = 0.0,
        gpus: int = 1,
    ) -> None:
        if util.find_spec("vllm") is None:
            raise MissingExtra("vLLM in this process", "vllm")
        if context < 0 or not 0.0 <= memory <= 1.0 or gpus < 1:
            raise SpecError("vllm-offline: context is 0 or more, memory a share, gpus 1 or more")
        super().__init__(model, dtype=dtype)
        self._context, self._memory, self._gpus = context, memory, gpus

    @property
    def batch(self) -> int:
        """Requests per call: several times what vLLM computes at once, few when killed."""
        return 128 if self._place == "cpu" else 2048

    async def close(self) -> None:
        """End vLLM's processes; a later request starts them again."""
        engine = self.__dict__.pop("_model", None)
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()

    def forget(self) -> None:
        """Empty the prefix cache, as before a measurement."""
        self._model.reset_prefix_cache()

    @cached_property
    def tokenizer(self) -> Pretrained:
        """How the model reads text; vLLM is not started for that."""
        return Pretrained(self._folder, self._context or None)

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return int(self._model.llm_engine.model_config.max_model_len)

    @cached_property
    def _place(self) -> str:
        _keep_quiet()
        from vllm.platforms import current_platform

        return str(current_platform.device_type)

    @property
    def _budget(self) -> int:
        # vLLM makes its own batches, and pads nothing.
        return 1 << 62

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - transformers' tokenizers share no useful type
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder())

    @cached_property
    def _model(self) -> vllm.LLM:
        _keep_quiet()
        import vllm

        on_cpu = self._place == "cpu"
        memory = self._memory or (CPU_MEMORY if on_cpu else 0.0)
        chosen: dict[str, Any] = {"gpu_memory_utilization": memory} if memory else {}
        if on_cpu:
            # Compiling takes a minute there and gains nothing.
            chosen |= {"enforce_eager": True, "block_size": CPU_BLOCK}
        try:
            return vllm.LLM(
                self._folder(),
                dtype=self._dtype,
                max_model_len=self._context or None,
                tensor_parallel_size=self._gpus,
                **chosen,
            )
        except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
            raise BackendError(f"vLLM cannot run {self._source!r}: {error}") from error

    def _refused(self, row: Tokens) -> str:
        if not row.prompt:
            return "the prompt is empty"
        # It writes a token whatever it is asked for.
        width = row.width + (row.request.want != "text")
        return "" if width <= self.context else self._too_long(width)

    @property
    def _compute(self) -> Mapping[Want, Any]:
        return {"likelihood": self._likelihood, "labels": self._labels, "text": self._text}

    def _likelihood(self, rows: Sequence[Tokens]) -> list[Reply]:
        """Log-probabilities of the targets.

        vLLM computes those of the whole prompt, which takes longer than reading it. So a prompt
        goes in without its target first; what its blocks hold is then read from the cache, and only
        what comes after them is scored. Log-probabilities of what was in the cache do not exist.
        """
        block = self._model.llm_engine.vllm_config.cache_config.block_size
        prompts = [row.prompt[:-1] for row in rows if len(row.prompt) > block]
        heads = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
        wishes = [_READ] * len(heads) + [_SCORE_THE_REST] * len(rows)
        found = self._generated([*heads, *(row.tokens for row in rows)], wishes)
        read = {tuple(head): out for head, out in zip(heads, found, strict=False)}
        scored = found[len(heads) :]
        again = [
            i
            for i, (row, out) in enumerate(zip(rows, scored, strict=True))
            if (out.num_cached_tokens or 0) >= len(row.prompt)
        ]
        whole = self._generated([rows[i].tokens for i in again], [_SCORE_ALL] * len(again))
        for i, out in zip(again, whole, strict=True):
            scored[i] = out
        # What the first pass put into the cache for a row was computed for it.
        return [
            _scored(row, out, read.pop(tuple(row.prompt[:-1]), out))
            for row, out in zip(rows, scored, strict=True)
        ]

    def _labels(self, rows: Sequence[Tokens]) -> list[Reply]:
        ids = [self._label_ids(row.request) for row in rows]
        wishes = [{**_READ, "logprob_token_ids": list(forms)} for forms in ids]
        found = self._generated([row.prompt for row in rows], wishes)
        replies = []
        for forms, out in zip(ids, found, strict=True):
            first = out.outputs[0].logprobs[0]
            read = {form: float(first[token].logprob) for token, form in forms.items()}
            replies.append(Reply(label_logprobs=read, usage=_usage(out)))
        return replies

    def _label_ids(self, request: Request) -> dict[int, str]:
        ids = super()._label_ids(request)
        if len(ids) > MOST_IDS:
            raise CapabilityError(f"vLLM reads at most {MOST_IDS} labels at once, not {len(ids)}")
        return ids

    def _text(self, rows: Sequence[Tokens]) -> list[Reply]:
        wishes = []
        for row in rows:
            params = row.request.params
            wishes.append(
                {
                    "max_tokens": params.max_tokens,
                    "temperature": params.temperature,
                    "top_p": params.top_p,
                    "stop": list(params.sent_stops),
                    "seed": params.seed,
                }
            )
        found = self._generated([row.prompt for row in rows], wishes)
        return [
            Reply(
                text=self._begun(row) + out.outputs[0].text,
                finish=out.outputs[0].finish_reason or "stop",
                usage=_usage(out, len(out.outputs[0].token_ids)),
            )
            for row, out in zip(rows, found, strict=True)
        ]

    def _generated(
        self, prompts: Sequence[list[int]], wishes: Sequence[Mapping[str, Any]]
    ) -> list[vllm.RequestOutput]:
        """What vLLM makes of prompts, in their order; those that begin alike go in side by side, so
        that what they share is still in its cache."""
        import vllm

        order = sorted(range(len(prompts)), key=prompts.__getitem__)
        greedy = {"temperature": 0.0}
        try:
            outputs = self._model.generate(
                [vllm.TokensPrompt(prompt_token_ids=prompts[i]) for i in order],
                [vllm.SamplingParams(**{**greedy, **wishes[i]}) for i in order],
                use_tqdm=False,
            )
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"vLLM failed: {error}") from error
        found = dict(zip(order, outputs, strict=True))
        return [found[i] for i in range(len(prompts))]


def _keep_quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def _scored(row: Tokens, out: vllm.RequestOutput, read: vllm.RequestOutput) -> Reply:
    """The target's log-probability; `read` is the output that tells what was in the cache."""
    steps = out.prompt_logprobs[len(row.prompt) :]
    values = [step[token].logprob for step, token in zip(steps, row.target, strict=True)]
    usage = replace(_usage(out), cached_tokens=_usage(read).cached_tokens)
    return Reply(logprob=math.fsum(values), tokens=len(row.target), usage=usage)


def _usage(out: vllm.RequestOutput, written: int = 0) -> Usage:
    prompt = out.prompt_token_ids or []
    return Usage(len(prompt), written, out.num_cached_tokens or 0)
