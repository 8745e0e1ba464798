"""Counting and cutting text by tokens: the server's tokenizer, the model's, tiktoken, an estimate.

Only `Served` asks a server, in one call per text. The others never wait for the network, but for
the one download of a tiktoken encoding, which has `DOWNLOAD_SECONDS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmrank.errors import BackendError, MissingExtra
from llmrank.request import Message, Tokenizer

if TYPE_CHECKING:
    import openai
    import tiktoken

CHARACTERS_A_TOKEN = 4

DOWNLOAD_SECONDS = 3.0
"""How long an encoding of tiktoken may take to arrive; it goes on arriving for the next time."""

TURN, REPLY = 4, 3
"""Tokens that chat formats add around a message, and to begin the reply."""

RECENT = 256
"""Texts whose tokens a tokenizer in this process remembers."""

REMEMBERED = 4096
"""Texts whose tokens are kept, so that a server is asked once for each."""

RETRIES = 3
"""How often a server that is away is asked again, after waits of half a second, one and two."""

AWAY = (408, 429, 502, 503, 504)
"""HTTP statuses of a server that may answer later."""

_O200K = (
    "fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
)
_CACHED = {
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}
"""Encodings with the name of their file in tiktoken's cache and its SHA-256. tiktoken fetches a
file that is absent or damaged and waits for it without end, so both are checked before."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Offsets:
    """A tokenizer in this process, which knows where in a text its tokens end."""

    remote = False

    def ends(self, text: str) -> list[int]:
        """For every token the characters of the text that are complete with it."""
        raise NotImplementedError

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.ends(text))

    def chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat, with what chat formats usually add."""
        return sum(self.count(turn.content) + TURN for turn in messages) + REPLY

    def head(self, text: str, tokens: int) -> str:
        """The beginning of a text up to where its first `tokens` tokens end."""
        ends = self._recent(text)
        return text if tokens >= len(ends) else text[: ends[tokens - 1]] if tokens else ""

    def tail(self, text: str, tokens: int) -> str:
        """The end of a text from where its last `tokens` tokens begin."""
        ends = self._recent(text)
        return text if tokens >= len(ends) else text[ends[-tokens - 1] :]

    @cached_property
    def _recent(self) -> Callable[[str], list[int]]:
        """`ends`, with those of the last texts remembered: one is asked for many times in a row."""
        return lru_cache(RECENT)(self.ends)


class Estimate(_Offsets):
    """One token for four ASCII characters, rounded up, and one for every other character."""

    counting = f"estimate: {CHARACTERS_A_TOKEN} characters a token"

    def __init__(self, context: int | None = None) -> None:
        self.context = context

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return estimate(text)

    def ends(self, text: str) -> list[int]:
        """For every token the characters of the text that are complete with it."""
        ends: list[int] = []
        plain = other = 0
        for end, character in enumerate(text, start=1):
            plain, other = plain + character.isascii(), other + (not character.isascii())
            if -(-plain // CHARACTERS_A_TOKEN) + other > len(ends):
                ends.append(end)
            else:
                ends[-1] = end
        return ends


def estimate(text: str) -> int:
    """Tokens of a text: one for four ASCII characters, rounded up, and one for every other."""
    plain = sum(map(str.isascii, text))
    return -(-plain // CHARACTERS_A_TOKEN) + len(text) - plain


class Tiktoken(_Offsets):
    """An encoding of OpenAI's models, which must be in tiktoken's cache."""

    def __init__(self, name: str, context: int | None = None) -> None:
        self._encoding = _encoding(name)
        self.counting, self.context = f"tiktoken {name}", context

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._encoding.encode_ordinary(_sendable(text)))

    def ends(self, text: str) -> list[int]:
        """For every token the characters of the text that are complete with it."""
        ids = self._encoding.encode_ordinary(_sendable(text))
        ends: list[int] = []
        begun = 0
        for piece in self._encoding.decode_tokens_bytes(ids):
            if ends and _continues(piece[0]):
                ends[-1] = begun - 1
            begun += len(piece) - sum(map(_continues, piece))
            ends.append(begun)
        return ends


def _continues(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with the character before it."""
    return byte & 0xC0 == 0x80


class Pretrained(_Offsets):
    """The tokenizer of a model folder or hub id, as transformers loads it.

    `source` may be a function, so that nothing is looked for or loaded before it is needed.
    `context` is by default what the model's configuration says.
    """

    def __init__(self, source: str | Callable[[], str], context: int | None = None) -> None:
        self._given, self._limit = source, context
        self.counting = (
            f"the tokenizer of {source}" if isinstance(source, str) else "the model's tokenizer"
        )

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its reply; None where that is not known."""
        return self._limit or self._stated

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._recent(text))

    def ends(self, text: str) -> list[int]:
        """For every token the characters of the text that are complete with it."""
        if not self._tokenizer.is_fast:
            raise BackendError(f"{self.counting} does not tell where in a text its tokens are")
        spans = self._tokenizer(
            _sendable(text),
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        # Tokens that share a character have the same span.
        nexts = [*(begin for begin, _ in spans[1:]), len(text)]
        return [min(end, begin) for (_, end), begin in zip(spans, nexts, strict=False)]

    def chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat as its template writes it, up to where the reply begins."""
        if not self._tokenizer.chat_template:
            return super().chat(messages)
        turns = [{"role": turn.role, "content": _sendable(turn.content)} for turn in messages]
        return self.count(chat_text(self._tokenizer, turns, thinks=False))

    @cached_property
    def _source(self) -> str:
        return self._given if isinstance(self._given, str) else self._given()

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - transformers' tokenizers share no useful type
        return self._load("AutoTokenizer")

    @cached_property
    def _stated(self) -> int | None:
        file = Path(self._source) / "config.json"
        # transformers takes seconds to import, and a run that only resumes may not need it.
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
        elif Path(self._source).is_dir():
            return None
        else:
            config = self._load("AutoConfig").to_dict()
        text = config.get("text_config") or config
        stated = text.get("max_position_embeddings")
        return stated if isinstance(stated, int) and stated > 0 else None

    def _load(self, kind: str) -> Any:  # noqa: ANN401 - as above
        try:
            import transformers
        except ImportError as error:
            raise MissingExtra("a model's tokenizer", "local") from error
        try:
            return getattr(transformers, kind).from_pretrained(self._source)
        except (KeyError, OSError, ValueError) as error:
            raise BackendError(f"no tokenizer in {self._source!r}: {error}") from error


def chat_text(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, thinks: bool) -> str:  # noqa: ANN401 - as above
    """A chat as a tokenizer's template writes it, up to where the reply begins.

    The templates of reasoning models that can answer at once look for one of these names.
    """
    return str(
        tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinks,
            thinking=thinks,
        )
    )


class _Refused(BackendError):
    """The server answers, but has no such route or not for this."""


class _Away(BackendError):
    """The server does not answer, but may later."""


class Served:
    """The tokenizer of a running server: vLLM, SGLang or llama.cpp.

    `url` is the base URL that the model is asked at. One call for every new text, in the thread
    that asks; `context` is by default what the server says. A server that is away is asked again
    `RETRIES` times, then the `spares`, tokenizers of other servers of the model; the one that
    answers is asked first from then on. Raises `BackendError` where none of them answers, or one
    has no such route.
    """

    remote = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        context: int | None = None,
        spares: Sequence[Served] = (),
    ) -> None:
        parts = urlsplit(url)
        self._root = url.rstrip("/").removesuffix("/v1")
        self._url, self._model, self._key, self._limit = url, model, key or "EMPTY", context
        self.counting = f"the tokenizer of {parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._ids = lru_cache(REMEMBERED)(self._encoded)
        self._chats = True
        self._servers = (self, *spares)

    def backed_by(self, spares: Sequence[Served]) -> Served:
        """The same with spares."""
        return Served(self._url, self._model, key=self._key, context=self._limit, spares=spares)

    @property
    def unasked(self) -> Tokenizer:
        """What counts in its place where nothing may be sent."""
        return choose(self._model, context=self._limit)

    @cached_property
    def context(self) -> int | None:
        """The most tokens of a prompt and its reply; None where that is not known."""
        if self._limit is not None:
            return self._limit
        stated = self._asked("/tokenize", self._body("a")).get("max_model_len")
        return stated if isinstance(stated, int) and stated > 0 else None

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def head(self, text: str, tokens: int) -> str:
        """The beginning of a text up to where its first `tokens` tokens end."""
        ids = self._ids(text)
        if tokens >= len(ids):
            return text
        # A character that is cut in two is written as a replacement, which the text may hold too.
        said = self._decoded(ids[:tokens]).rstrip("\ufffd")
        return said if text.startswith(said) else text[: len(said)]

    def tail(self, text: str, tokens: int) -> str:
        """The end of a text from where its last `tokens` tokens begin."""
        ids = self._ids(text)
        if tokens >= len(ids):
            return text
        said = self._decoded(ids[len(ids) - tokens :]).lstrip("\ufffd")
        return said if text.endswith(said) else text[len(text) - len(said) :]

    def chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat as the server's template writes it, up to where the reply begins.

        Where the server does not tell them, the messages' own and what chat formats usually add.
        """
        turns = [{"role": turn.role, "content": _sendable(turn.content)} for turn in messages]
        if self._chats:
            body = {"model": self._model, "messages": turns, "add_generation_prompt": True}
            try:
                # llama.cpp takes no messages here and finds no text in them.
                if ids := self._asked("/tokenize", body).get("tokens"):
                    return len(ids)
                return self.count(
                    str(self._asked("/apply-template", {"messages": turns})["prompt"])
                )
            except (_Refused, KeyError):
                self._chats = False
        return sum(self.count(turn.content) + TURN for turn in messages) + REPLY

    def _body(self, text: str) -> dict[str, object]:
        """What vLLM and SGLang, and what llama.cpp call a text and its special tokens."""
        text = _sendable(text)
        return {
            "model": self._model,
            "prompt": text,
            "add_special_tokens": False,
            "content": text,
            "add_special": False,
        }

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = self._asked("/tokenize", self._body(text)).get("tokens")
        if not isinstance(ids, list) or (text and not ids):
            raise BackendError(f"{self.counting} does not say what the tokens of a text are")
        return tuple(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        answer = self._asked("/detokenize", {"model": self._model, "tokens": list(ids)})
        # As vLLM, llama.cpp and SGLang call it.
        for name in ("prompt", "content", "text"):
            if isinstance(said := answer.get(name), str):
                return said
        raise BackendError(f"{self.counting} does not say what tokens mean")

    def _asked(self, route: str, body: Mapping[str, object]) -> dict[str, Any]:
        """What the first server that is not away answers."""
        for _ in self._servers[1:]:
            server = self._servers[0]
            try:
                return server._posted(route, body)
            except _Away:
                self._servers = (*(one for one in self._servers if one is not server), server)
        return self._servers[0]._posted(route, body)

    def _posted(self, route: str, body: Mapping[str, object]) -> dict[str, Any]:
        import openai

        try:
            answer = self._client.post(f"{self._root}{route}", cast_to=object, body=body)
        except openai.APIStatusError as error:
            kind = _Away if error.status_code in AWAY else _Refused
            raise kind(f"{self.counting} cannot be asked: {error}") from error
        except openai.OpenAIError as error:
            raise _Away(f"{self.counting} cannot be asked: {error}") from error
        if not isinstance(answer, dict):
            raise BackendError(f"{self.counting} answers with something that is no JSON object")
        return answer

    @cached_property
    def _client(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=self._url, api_key=self._key, timeout=10, max_retries=RETRIES)


def choose(
    model: str,
    *,
    served: str = "",
    folder: str = "",
    key: str = "",
    context: int | None = None,
) -> Served | Pretrained | Tiktoken | Estimate:
    """The most exact tokenizer for a model that is behind a server.

    The one in `folder` if it is given, else that of the server at `served` if it has one, else
    tiktoken where it knows the model and has its encoding, else an estimate.
    """
    if folder:
        return Pretrained(folder, context)
    if served:
        return Served(served, model, key=key, context=context)
    name = _encoding_name(model)
    if name in _CACHED and _obtained(name):
        return Tiktoken(name, context)
    return Estimate(context)


def _encoding_name(model: str) -> str:
    import tiktoken

    try:
        return tiktoken.encoding_name_for_model(model.removeprefix("openai/"))
    except KeyError:
        return ""


def _obtained(name: str, seconds: float = DOWNLOAD_SECONDS) -> bool:
    """Whether an encoding is in tiktoken's cache, or came there within some seconds."""
    path = _cache_path(name)
    if path is None:
        return False
    if not path.exists():
        _download(name, seconds)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _CACHED[name][1]


def _cache_path(name: str) -> Path | None:
    """Where tiktoken keeps an encoding; None where it keeps none."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if chosen == "":  # tiktoken's way of saying that nothing is cached
        return None
    return (default if chosen is None else Path(chosen)) / _CACHED[name][0]


def _source(name: str) -> str:
    """Where an encoding comes from."""
    file = "o200k_base" if _CACHED[name] is _O200K else name
    return f"https://openaipublic.blob.core.windows.net/encodings/{file}.tiktoken"


@cache
def _download(name: str, seconds: float) -> None:
    """Put an encoding into tiktoken's cache in a thread that nobody waits for longer than this.

    Once, as a network that is not there stays away. tiktoken's own way to it holds a lock while it
    waits for the network, without a limit.
    """

    def fetch() -> None:
        from tiktoken.load import read_file_cached

        # No network (an OSError), or not the file that is expected (a ValueError).
        with suppress(OSError, ValueError):
            read_file_cached(_source(name), _CACHED[name][1])

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(seconds)


@cache
def _encoding(name: str) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.get_encoding(name)


def _sendable(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, replaced one by one."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
