"""An encoder-decoder model in this process, run by transformers: the prompt goes to the encoder,
and the decoder gives label probabilities, query likelihood and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmrank.backends.local import LocalBackend, Tokens
from llmrank.errors import CapabilityError, SpecError
from llmrank.request import Message, Want

if TYPE_CHECKING:
    import torch

EXAMPLE = "seq2seq:castorini/monot5-base-msmarco"


class Seq2SeqBackend(LocalBackend):
    """A transformers encoder-decoder model such as monoT5, flan-t5 or T0, on the CPU or a GPU.

    `model` is a folder or a model id of the Hugging Face hub. Labels are read from the first token
    that the decoder gives, a likelihood is the sum over the tokens of the target, text is what the
    decoder writes. The messages of a chat become one text where the model has no chat template.
    Models of the T5 family tell positions apart relatively and take inputs of any length, also
    beyond the 512 tokens that most were trained on; others refuse what exceeds their positions.
    Computing in float16 overflows in many T5 models; bfloat16 does not. monoT5: Nogueira et al.
    2020, arXiv 2003.06713; likelihood: Sachan et al. 2022 (UPR), arXiv 2204.07496.
    """

    kind = "seq2seq"
    pads = "right"
    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood"})

    def __init__(self, model: str, *, dtype: str = "float32", device: str = "") -> None:
        if not model:
            raise SpecError(f"name the encoder-decoder model: {EXAMPLE}")
        super().__init__(model, dtype=dtype, device=device)

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._source)
        return tokenizer, AutoModelForSeq2SeqLM.from_pretrained(self._source, dtype=dtype)

    def _chat(self, messages: Sequence[Message], thinking: int = 0) -> list[int]:
        if self._tokenizer.chat_template:
            return super()._chat(messages, thinking)
        if any(turn.role == "assistant" for turn in messages):
            raise CapabilityError(
                f"{self.name} has no chat template, and the prompt holds replies of an assistant; "
                "use a plain-text prompt"
            )
        text = "\n\n".join(turn.content for turn in messages)
        return list(self._tokenizer(text)["input_ids"])

    def _refused(self, row: Tokens) -> str:
        if not row.prompt:
            return "the prompt is empty"
        answer = len(self._prefix) + len(row.target) + row.generated
        width = max(len(row.prompt), answer)
        return "" if width <= self.context else self._too_long(width)

    def _target_logprobs(self, rows: Sequence[Tokens]) -> list[torch.Tensor]:
        steps = self._decoded(rows, [row.target for row in rows])
        return [found[: len(row.target)] for row, found in zip(rows, steps, strict=True)]

    def _first_logprobs(self, rows: Sequence[Tokens]) -> torch.Tensor:
        return self._decoded(rows, [[] for _ in rows])[:, 0]

    def _decoded(self, rows: Sequence[Tokens], targets: Sequence[list[int]]) -> torch.Tensor:
        """Log-probabilities of the tokens of each target and of what follows it."""
        import torch

        ids, mask = self._padded([row.prompt for row in rows])
        longest = max(map(len, targets))
        pad = self._tokenizer.pad_token_id
        # A decoder looks back only, so what pads the end of a target changes nothing before it.
        fed = [[*self._prefix, *ids_, *[pad] * (longest - len(ids_))] for ids_ in targets]
        with torch.inference_mode():
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=torch.tensor(fed, device=ids.device),
                use_cache=False,
            )
            return out.logits[:, len(self._prefix) - 1 :].float().log_softmax(-1)

    @property
    def _prefix(self) -> list[int]:
        """What the decoder reads before its first own token."""
        settings = self._model.generation_config
        start = settings.decoder_start_token_id
        if start is None:
            start = self._model.config.decoder_start_token_id
        forced = settings.forced_bos_token_id
        return [start] if forced is None else [start, forced]

    def _begins(self, ids: torch.Tensor) -> int:
        return 1
