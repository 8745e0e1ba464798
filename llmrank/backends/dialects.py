"""How servers that speak the OpenAI API differ: one table, and what tells them apart.

Sources: the servers' documentation and their code as of November 2026. A server that none of the
marks fits is `unknown` and gets what most of them take. Nothing here goes by the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"

ROOT = "^"
"""Stands at the start of a path that is relative to the server's root, not to its base URL."""

IDS = "ids"
MOST_IDS = 128
"""How many token ids vLLM takes in `logprob_token_ids`."""


@dataclass(frozen=True, slots=True)
class Way:
    """A request that gets log-probabilities of a given text, which goes into the field `text`."""

    path: str
    text: str
    body: Mapping[str, object]

    @property
    def native(self) -> bool:
        """Whether the route is the server's own, which knows none of the API's parameters."""
        return self.path.startswith(ROOT)


LIKELIHOOD: Mapping[str, Way] = {
    "echo": Way(COMPLETIONS, "prompt", {"echo": True, "logprobs": 0, "max_tokens": 0}),
    "echo, 1 logprob": Way(COMPLETIONS, "prompt", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    "prompt_logprobs": Way(COMPLETIONS, "prompt", {"prompt_logprobs": 0, "max_tokens": 1}),
    "decoder_input_details": Way(
        f"{ROOT}/generate",
        "inputs",
        {"parameters": {"details": True, "decoder_input_details": True, "max_new_tokens": 1}},
    ),
}
_COMPLETED = ("echo", "echo, 1 logprob", "prompt_logprobs")

THINKING_OFF: Mapping[str, Mapping[str, object]] = {
    "reasoning_effort=none": {"reasoning_effort": "none"},
    "reasoning_effort=minimal": {"reasoning_effort": "minimal"},
    "enable_thinking=false": {"chat_template_kwargs": {"enable_thinking": False}},
    "thinking=false": {"chat_template_kwargs": {"thinking": False}},
    "reasoning.enabled=false": {"reasoning": {"enabled": False}},
}
"""What keeps a reasoning model from thinking; which of them does is tried out."""
_TEMPLATE_OFF = ("enable_thinking=false", "thinking=false", "reasoning_effort=none")

Schema = Mapping[str, object]


def _json_schema(schema: Schema) -> dict[str, object]:
    inner = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


STRUCTURED: Mapping[str, Callable[[Schema], dict[str, object]]] = {
    "response_format json_schema": _json_schema,
    "structured_outputs": lambda schema: {"structured_outputs": {"json": schema}},
    "response_format schema": lambda schema: {
        "response_format": {"type": "json_schema", "schema": schema}
    },
    "response_format value": lambda schema: {"response_format": {"type": "json", "value": schema}},
}
"""What makes a server write JSON of a given schema."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The route that turns a text into token ids; `field` takes the text."""

    path: str
    field: str
    more: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells a server: its host, its path, who owns the models it lists, or a route of its own.

    `routes` maps a path to a key that its JSON answer holds; the first one answered is enough.
    """

    hosts: tuple[str, ...] = ()
    path: str = ""
    owner: str = ""
    columns: frozenset[str] = frozenset()
    routes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one kind of server takes.

    `limits` are the fields that limit the length of a chat reply, best first. `labels` are the ways
    to the probabilities of labels, best first: `ids` asks for exact token ids, `top-N` for the N
    likeliest tokens. `firm` goes into every request for labels. `version` and `context` say where
    the version and the context length stand: a path (or `/models`) and the keys inside its answer.
    """

    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    labels: tuple[str, ...] = ("top-20", "top-5")
    likelihood: tuple[str, ...] = _COMPLETED
    structured: tuple[str, ...] = ("response_format json_schema",)
    thinking_off: tuple[str, ...] = (*_TEMPLATE_OFF, "reasoning_effort=minimal")
    tokenizer: Tokenizer | None = None
    key_header: str = "Authorization"
    most_stops: int | None = None
    firm: Mapping[str, object] = field(default_factory=dict)
    version: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    marks: Marks = Marks()


UNKNOWN = "unknown"
_PLAIN_TOKENS = {"add_special_tokens": False}
_OF_OPENAI = ("reasoning_effort=none", "reasoning_effort=minimal")

DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(
        limits=("max_completion_tokens", "max_tokens"),
        likelihood=("echo", "echo, 1 logprob"),
        thinking_off=_OF_OPENAI,
        most_stops=4,
        marks=Marks(hosts=("api.openai.com",)),
    ),
    "azure": Dialect(
        limits=("max_completion_tokens", "max_tokens"),
        likelihood=("echo", "echo, 1 logprob"),
        thinking_off=_OF_OPENAI,
        key_header="api-key",
        most_stops=4,
        marks=Marks(
            hosts=("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com"),
            path="/openai/deployments/",
        ),
    ),
    "openrouter": Dialect(
        thinking_off=("reasoning.enabled=false", "reasoning_effort=none"),
        # Otherwise it may pick a provider that drops what it does not know.
        firm={"provider": {"require_parameters": True}},
        context=("/models", "context_length"),
        marks=Marks(
            hosts=("openrouter.ai",),
            columns=frozenset({"canonical_slug", "top_provider", "pricing"}),
        ),
    ),
    "vllm": Dialect(
        labels=(IDS, "top-20", "top-5"),
        structured=("response_format json_schema", "structured_outputs"),
        tokenizer=Tokenizer(f"{ROOT}/tokenize", "prompt", _PLAIN_TOKENS),
        version=(f"{ROOT}/version", "version"),
        context=("/models", "max_model_len"),
        marks=Marks(owner="vllm"),
    ),
    "sglang": Dialect(
        likelihood=("echo, 1 logprob",),
        tokenizer=Tokenizer(f"{ROOT}/tokenize", "prompt", _PLAIN_TOKENS),
        version=(f"{ROOT}/get_server_info", "version"),
        context=("/models", "max_model_len"),
        marks=Marks(owner="sglang", routes={f"{ROOT}/get_model_info": "model_path"}),
    ),
    "llama.cpp": Dialect(
        labels=("top-100", "top-20", "top-5"),
        structured=("response_format json_schema", "response_format schema"),
        tokenizer=Tokenizer(
            f"{ROOT}/tokenize", "content", {"add_special": False, "parse_special": False}
        ),
        version=(f"{ROOT}/props", "build_info"),
        context=(f"{ROOT}/props", "default_generation_settings", "n_ctx"),
        marks=Marks(owner="llamacpp", routes={f"{ROOT}/props": "default_generation_settings"}),
    ),
    "ollama": Dialect(
        # It ignores max_completion_tokens and goes on writing.
        limits=("max_tokens",),
        likelihood=(),
        thinking_off=("reasoning_effort=none",),
        version=(f"{ROOT}/api/version", "version"),
        marks=Marks(owner="library", routes={f"{ROOT}/api/version": "version"}),
    ),
    "tgi": Dialect(
        labels=("top-5",),
        likelihood=("decoder_input_details",),
        structured=("response_format json_schema", "response_format value"),
        tokenizer=Tokenizer(f"{ROOT}/tokenize", "inputs", _PLAIN_TOKENS),
        version=(f"{ROOT}/info", "version"),
        context=(f"{ROOT}/info", "max_total_tokens"),
        marks=Marks(routes={f"{ROOT}/info": "max_total_tokens"}),
    ),
    UNKNOWN: Dialect(structured=tuple(STRUCTURED)),
}
"""Every kind of server known, by name."""


def by_url(url: str) -> str:
    """The dialect that the address alone tells, else `unknown`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    for name, dialect in DIALECTS.items():
        marks = dialect.marks
        if any(host == known or host.endswith(f".{known}") for known in marks.hosts):
            return name
        if marks.path and marks.path in parts.path:
            return name
    return UNKNOWN


def by_models(rows: Iterable[Mapping[str, Any]]) -> str:
    """The dialect that the rows of /models tell, else `unknown`."""
    for row in rows:
        for name, dialect in DIALECTS.items():
            marks = dialect.marks
            if marks.owner and row.get("owned_by") == marks.owner:
                return name
            if marks.columns and marks.columns <= row.keys():
                return name
    return UNKNOWN
