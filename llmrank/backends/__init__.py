"""Backends decide who answers; a model is named `kind:name,option=value`.

local                          the small default model in this process
local:FOLDER,dtype=bfloat16    any causal model that transformers can load
cross:FOLDER                   a cross-encoder: reads query and passage together, grades yes or no
seq2seq:FOLDER                 an encoder-decoder model such as monoT5 or flan-t5
openai:gpt-4.1-mini            OpenAI, or with a base URL any compatible server
batch:gpt-4.1-mini             the same through the Batch API: answers within a day, at half price
decisions:gpt-6-luna           a decision model: grades many passages in one call
vllm:Qwen/Qwen3-4B             a vLLM server, by default on this machine's port 8000
vllm-offline:FOLDER            vLLM in this process: full batches, no server
score:NAME                     a reranker behind a server's /score or /rerank, by default vLLM's
oracle:qrels.tsv,noise=0.5     a judge that answers from relevance judgements

Of these local, openai, batch and vllm also name embedding models, and so does

promptreps:FOLDER              any causal model as an encoder
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import llmrank.spec as spec
import llmrank.trec as trec
from llmrank.backends.oracle import Oracle
from llmrank.backends.wrappers import ModelPool
from llmrank.errors import BackendError, SpecError
from llmrank.request import Model as Model

VLLM_URL = "http://127.0.0.1:8000/v1"
BASE_URL = "LLMRANK_BASE_URL"


def _local(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.local import LocalBackend

    return _made("local", LocalBackend, name, options)


def _cross(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.crossencoder import CrossEncoderBackend

    return _made("cross", CrossEncoderBackend, name, options)


def _seq2seq(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.seq2seq import Seq2SeqBackend

    return _made("seq2seq", Seq2SeqBackend, name, options)


def _openai(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.openai import OpenAIBackend

    return _made("openai", OpenAIBackend, _named(name, base_url), options, base_url=base_url)


def _batch(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.batch import BatchBackend

    return _made("batch", BatchBackend, _named(name, base_url), options, base_url=base_url)


def _decisions(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.decisions import DecisionsBackend

    return _made("decisions", DecisionsBackend, _named(name, base_url), options, base_url=base_url)


def _vllm(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    return _openai(name, base_url or VLLM_URL, {"dialect": "vllm", **options})


def _vllm_offline(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.vllm import VllmBackend

    return _made("vllm-offline", VllmBackend, name, options)


def _score(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.score import ScoreBackend

    url = base_url or VLLM_URL
    return _made("score", ScoreBackend, _named(name, url), options, base_url=url)


def _oracle(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    if not name:
        raise SpecError("an oracle needs judgements: oracle:qrels.tsv")
    return _made("oracle", Oracle, trec.read_qrels(name), options)


def _encoder(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.encoder import SentenceEncoder

    return _made("local", SentenceEncoder, name, options)


def _promptreps(name: str, base_url: str | None, options: Mapping[str, str]) -> Model:
    from llmrank.backends.promptreps import PromptReps

    return _made("promptreps", PromptReps, name, options)


Opener = Callable[[str, str | None, Mapping[str, str]], Model]

MODELS: Mapping[str, Opener] = {
    "local": _local,
    "cross": _cross,
    "seq2seq": _seq2seq,
    "openai": _openai,
    "batch": _batch,
    "decisions": _decisions,
    "vllm": _vllm,
    "vllm-offline": _vllm_offline,
    "score": _score,
    "oracle": _oracle,
}
ENCODERS: Mapping[str, Opener] = {
    "local": _encoder,
    "openai": _openai,
    "batch": _batch,
    "promptreps": _promptreps,
    "vllm": _vllm,
}


def connect(name: str | None = None, *, base_url: str | None = None) -> Model:
    """The language model of a name such as `openai:gpt-4.1-mini`.

    Without a name it is the only model of the server at `base_url` (or $LLMRANK_BASE_URL), and
    without either the small local one. Several URLs with commas between serve as one pool.
    """
    return _connect(MODELS, name, base_url)


def connect_encoder(name: str | None = None, *, base_url: str | None = None) -> Model:
    """The embedding model of a name such as `local` or `openai:text-embedding-3-small`."""
    return _connect(ENCODERS, name, base_url)


def addresses(base_url: str | None) -> list[str]:
    """The URLs of servers, by default those of $LLMRANK_BASE_URL; several make a pool."""
    given = (base_url or os.environ.get(BASE_URL) or "").split(",")
    return [url.strip() for url in given if url.strip()]


def _connect(kinds: Mapping[str, Opener], name: str | None, base_url: str | None) -> Model:
    base_url = base_url or os.environ.get(BASE_URL) or None
    urls = addresses(base_url)
    if len(urls) > 1:
        return ModelPool([_connect(kinds, name, url) for url in urls])
    if not name:
        name = "openai" if base_url else "local"
    kind, _, rest = name.partition(":")
    if kind not in kinds:
        if not base_url:
            known = ", ".join(f"{kind}:NAME" for kind in kinds)
            raise SpecError(f"no kind of model named {kind!r}; write one of: {known}")
        kind, rest = "openai", name
    model, *parts = rest.split(",")
    options = dict(_option(name, part) for part in parts)
    return kinds[kind](model.strip(), base_url, options)


def _option(name: str, part: str) -> tuple[str, str]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals:
        raise SpecError(f"cannot read {part!r} in the model {name!r}; write option=value")
    return key, value


def _made(
    kind: str,
    build: Callable[..., Model],
    first: object,
    options: Mapping[str, str],
    **fixed: object,
) -> Model:
    keywords = spec.bind(kind, build, options)
    return build(first, **{**keywords, **fixed})


def _named(name: str, base_url: str | None) -> str:
    """The name given, else that of the only model the server has."""
    if name:
        return name
    if base_url is None:
        raise SpecError("name the model: openai:NAME")
    import openai

    key = os.environ.get("OPENAI_API_KEY", "EMPTY")
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=10) as client:
        try:
            served = [model.id for model in client.models.list().data]
        except openai.OpenAIError as error:
            raise BackendError(f"no answer from {base_url}: {error}") from error
    if len(served) != 1:
        names = ", ".join(served) or "none"
        raise SpecError(f"name the model, {base_url} has several or none: {names}")
    return served[0]
