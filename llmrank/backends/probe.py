"""Finding out what an OpenAI-compatible server can do, each thing by its effect, and keeping it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmrank.backends._answers import Failure
from llmrank.backends._greeting import Greeting
from llmrank.backends._trials import Capability, Trials
from llmrank.backends._wire import Turn
from llmrank.backends.dialects import DIALECTS, LIKELIHOOD, THINKING_OFF, UNKNOWN, by_url
from llmrank.backends.openai import Learnt, OpenAIBackend
from llmrank.backends.tokens import Estimate
from llmrank.backends.wrappers import Minute, Wrapper
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import BackendError
from llmrank.request import Backend, Reply, Request

FILE = "probe.json"
FORMAT = 2

TRIAL_SECONDS = 20.0
"""How long a probe waits for an answer."""

GREETING_SECONDS = (2.0, 4.0, 8.0)
"""How long a greeting waits for each answer: the first one, and those of a server in trouble."""

TRIAL_TOKENS = 100
"""Tokens that a request of a probe counts for in a minute; it has fewer."""

LIKELIEST = (
    "label probabilities are read from its likeliest tokens, not by exact token ids, which may "
    "give other scores; name its kind with the model, as in openai:MODEL,dialect=vllm"
)
"""What it means that the kind of a server is not known."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a server that answered can do with one model.

    `server` is its dialect, `version` and `models` what it says of itself, `context` the tokens
    that a prompt and its answer may have together: empty or None where it does not say. `seconds`
    is the time of a one-token call. `can` holds every capability by name. `sample` are the real
    probabilities of Yes and No for a question whose answer is obvious, empty without any.
    `learnt` is what the backend uses.
    """

    url: str
    model: str
    server: str
    version: str
    models: tuple[str, ...]
    context: int | None
    seconds: float | None
    can: Mapping[str, Capability]
    sample: Mapping[str, float]
    learnt: Learnt

    @property
    def settled(self) -> bool:
        """Whether no trouble left a capability open."""
        return all(one.settled for one in self.can.values())

    @property
    def uses(self) -> Mapping[str, str]:
        """For each family of methods what it will use, or why it is not available."""
        chat, plain = self.can["chat_logprobs"], self.can["completion_logprobs"]
        labels = _use((f"chat, {chat.note}", chat), (f"completions, {plain.note}", plain))
        scored = ((name.split(",")[0], name) for name in LIKELIHOOD)
        ways = [(name, self.can[name]) for name in dict(scored) if name in self.can]
        return {
            "pointwise labels": labels,
            "likelihood": _use(*ways),
            "listwise text": _use(
                ("chat text", self.can["chat"]), ("completions text", self.can["completions"])
            ),
            "listwise labels": labels,
            "attention": "not available: no server shows its attention; use --model local",
            "dense": _use(("embeddings", self.can["embeddings"])),
        }

    def save(self, folder: Path) -> None:
        """Keep this in a folder's `probe.json`, beside what is kept of other servers there."""
        _keep_row(folder, "servers", _key(self.url, self.model), asdict(self))

    @classmethod
    def load(cls, folder: Path, url: str, model: str) -> Probe | None:
        """What is kept of a server and a model; None where nothing is, or nothing readable."""
        try:
            return cls._from(_kept(folder, "servers")[_key(url, model)])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    @classmethod
    def _from(cls, row: Mapping[str, Any]) -> Probe:
        learnt = Learnt(**{**row["learnt"], "unsent": tuple(row["learnt"]["unsent"])})
        _check(learnt)
        can = {name: Capability(**found) for name, found in row["can"].items()}
        probe = cls(**{**row, "models": tuple(row["models"]), "can": can, "learnt": learnt})
        _ = probe.uses
        return probe


def _key(url: str, model: str) -> str:
    return f"{url} {model}"


def _kept(folder: Path, part: str) -> dict[str, Any]:
    """Rows of a folder's file: `servers` are probes, `greeted` what servers said of themselves.

    None where the file is absent, broken or of another format.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return dict(content.get(part, {})) if content["format"] == FORMAT else {}
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _keep_row(folder: Path, part: str, key: str, row: Mapping[str, Any]) -> None:
    """Put a row into a folder's file, beside what stands there."""
    parts = {name: _kept(folder, name) for name in ("servers", "greeted")}
    if parts[part].get(key) == row:
        return
    parts[part][key] = row
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f"{FILE}.{os.getpid()}"
    draft.write_text(json.dumps({"format": FORMAT, **parts}, indent=1), encoding="utf-8")
    draft.replace(folder / FILE)


def _check(learnt: Learnt) -> None:
    """Raise `KeyError` where a name is in no table, as of another version of the program."""
    dialect = DIALECTS[learnt.dialect]
    for name, table in (
        (learnt.likelihood, LIKELIHOOD),
        (learnt.thinking, THINKING_OFF),
    ):
        if name and name not in table:
            raise KeyError(name)
    if not set(learnt.labels.values()) <= set(dialect.labels):
        raise KeyError(str(learnt.labels))


def _use(*choices: tuple[str, Capability]) -> str:
    """The first that works; the reason of the first that does not, where none does."""
    for name, capability in choices:
        if capability:
            return name
    return f"not available: {choices[0][1].note if choices else 'this server has no such route'}"


async def probe(
    backend: OpenAIBackend,
    *,
    wait: float = 0.5,
    seconds: float = TRIAL_SECONDS,
    turn: Turn | None = None,
    known: Probe | None = None,
) -> Probe:
    """What the backend's server can do with its model, found out with about thirty tiny requests.

    The backend uses what was found from then on. Each request takes its `turn` first and is waited
    for `seconds` seconds. One that fails for a moment is put again twice, after `wait` seconds and
    twice that, or as long as the server asks. Of what is `known` only what was left open is tried.
    Raises `BackendError` where nothing answers, or where the key, the account or the model is
    refused everywhere; a missing capability is never an error.
    """
    if known is None:
        backend.adopt(Learnt(dialect=backend.wire.dialect))
    trials = Trials(backend, wait)
    with backend.wire.trying(seconds, turn):
        await trials.identify()
        can = await trials.all(known.can if known else {})
    if trials.blocked and not (can["chat"] or can["completions"] or can["embeddings"]):
        raise BackendError(trials.blocked[0])
    route = backend.dialect.tokenizer
    # `tokens.Served` speaks to these.
    served = route is not None and route.field in ("prompt", "content")
    tokenizes = bool(can["tokenizer"]) and served
    backend.adopt(replace(backend.learnt, context=trials.context, tokenizes=tokenizes))
    if isinstance(backend.tokenizer, Estimate):
        # An estimate may be half as much again: prompts that fit would be cut or refused.
        backend.adopt(replace(backend.learnt, context=None))
    return Probe(
        url=backend.url,
        model=backend.model,
        server=backend.learnt.dialect,
        version=trials.version,
        models=trials.models,
        context=trials.context,
        seconds=trials.seconds or (known.seconds if known else None),
        can=can,
        sample=trials.sample or (known.sample if known else {}),
        learnt=backend.learnt,
    )


def recall(backend: OpenAIBackend, folders: Sequence[Path]) -> Probe | None:
    """Make a backend use what one of the folders keeps of its server, if one does.

    Without a probe that is what the server said of itself when it was greeted.
    """
    for folder in folders:
        found = Probe.load(folder, backend.url, backend.model)
        # A dialect that the user names goes before what was found.
        if found is not None and backend.wire.dialect in (UNKNOWN, found.learnt.dialect):
            backend.adopt(found.learnt)
            return found
    for folder in folders:
        match _kept(folder, "greeted").get(_key(backend.url, backend.model)):
            case {"dialect": str(dialect), "version": str(version)} if (
                dialect in DIALECTS and backend.wire.dialect in (UNKNOWN, dialect)
            ):
                backend.adopt(Learnt(dialect=dialect, version=version))
                return None
    return None


async def keep(
    backends: Sequence[OpenAIBackend], folders: Sequence[Path], turns: Sequence[Turn | None]
) -> None:
    """Probe servers at once, each at its own turns, and keep what is found in the first folder.

    What one of the folders keeps already is not tried again, unless the server says that it is of
    another kind or version now. Servers that do not answer are logged where another one does, or
    where something is kept of them. Raises `BackendError` where none does.
    """
    pairs = zip(backends, turns, strict=True)
    errors = await side_by_side([_keep(backend, folders, turn) for backend, turn in pairs])
    failed = [error for error in errors if error is not None]
    if failed and len(failed) == len(errors):
        raise failed[0]
    for error in failed:
        log.warning("a server was not probed: %s", error)


async def _keep(
    backend: OpenAIBackend, folders: Sequence[Path], turn: Turn | None
) -> BackendError | None:
    """Probe one server; the error where nothing can be known of it."""
    known = recall(backend, folders)
    changed = (await greet(backend)).changed if known else ""
    if changed:
        log.info("%s is probed anew: %s", backend.url, changed)
    elif known and known.settled:
        return None
    try:
        found = await probe(backend, turn=turn, known=None if changed else known)
    except BackendError as error:
        if known is None:
            return error
        log.warning("what is kept of a server is used; it was not probed: %s", error)
        backend.adopt(known.learnt)
        return None
    found.save(folders[0])
    return None


async def greet(backend: OpenAIBackend, *, seconds: float = GREETING_SECONDS[0]) -> Greeting:
    """Ask a server what it is, by a few free requests, and use its dialect and version.

    Never fails; each request is waited for so many seconds at most. Where the server is not the one
    that the backend knew, what was known of it is not used any more, but for what decides which
    prompts it is sent and under which name its answers are kept.
    The context length that it states is not used: an estimate of tokens would cut prompts that
    fit, and the prompts of a run may not depend on whether its server answers just now.
    """
    greeting = Greeting(backend, seconds)
    with suppress(BackendError, Failure):
        await greeting.identify()
    return greeting


class Greeter:
    """Asks a server once what it is, before anything is sent that depends on it.

    One that is slow or in trouble is greeted again at once, each time with the next of `limits`.
    If it has not said by then it is of no known kind from then on, so that all is asked in one way;
    what that `means` is logged. One whose address tells what it is is not asked. What it says is
    kept in the folder. `kinds` is shared by the members of a pool.
    """

    def __init__(
        self,
        server: OpenAIBackend,
        folder: Path | None = None,
        kinds: dict[str, str] | None = None,
        *,
        limits: Sequence[float] = GREETING_SECONDS,
        means: str = LIKELIEST,
    ) -> None:
        self._server, self._folder = server, folder
        self._limits, self._means = limits, means
        self._kinds = {} if kinds is None else kinds
        self._greeting = asyncio.Lock()
        kind = by_url(server.url)
        self._settled = kind != UNKNOWN
        if self._settled:
            self._kinds[server.url] = kind

    async def greeted(self) -> None:
        """Wait until it is settled what the server is."""
        async with self._greeting:
            if not self._settled:
                self._settle(await self._greet())
                self._settled = True

    async def _greet(self) -> Greeting:
        for seconds in self._limits:
            greeting = await greet(self._server, seconds=seconds)
            if self._server.learnt.dialect != UNKNOWN or not greeting.trouble:
                break
        return greeting

    def _settle(self, greeting: Greeting) -> None:
        """Log and keep what came of it."""
        server, kind = self._server, self._server.learnt.dialect
        if kind == UNKNOWN and greeting.trouble:
            log.warning(
                "%s did not say what kind of server it is (%s): %s",
                server.url,
                greeting.trouble,
                self._means,
            )
            return
        if greeting.changed:
            log.warning(
                "%s has changed (%s): but for how it is kept from thinking and counts tokens, what "
                "was known of it is not used; --probe finds out anew",
                server.url,
                greeting.changed,
            )
        if kind != UNKNOWN and self._folder is not None:
            told = {"dialect": kind, "version": server.learnt.version}
            _keep_row(self._folder, "greeted", _key(server.url, server.model), told)
        self._compare(kind)

    def _compare(self, kind: str) -> None:
        """Log the members of a pool that are of no known kind, once one of them is."""
        self._kinds[self._server.url] = kind
        strange = [url for url, known in self._kinds.items() if known == UNKNOWN]
        if len(strange) == len(self._kinds):
            return
        for url in strange:
            del self._kinds[url]
            log.warning(
                "%s is of no known kind, unlike other servers of the pool: %s", url, self._means
            )


class Greeted(Wrapper):
    """Sends nothing but requests for vectors to a server that has not been greeted."""

    def __init__(self, inner: Backend, greeter: Greeter) -> None:
        super().__init__(inner)
        self._greeter = greeter

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        if any(request.want != "vectors" for request in requests):
            await self._greeter.greeted()
        return await self.inner.answer(requests)


def alike(backends: Sequence[OpenAIBackend]) -> list[OpenAIBackend]:
    """Those that answer alike as one pool, the one that takes the shortest prompts first.

    Where a model is kept from thinking at some of its servers, the others are left out and logged.
    """
    quiet = [backend for backend in backends if backend.learnt.thinking]
    for backend in backends if quiet else ():
        if backend not in quiet:
            log.warning(
                "%s is left out of the pool: what keeps its model from thinking is not known, as "
                "it is of the others; --probe finds it out",
                backend.url,
            )

    def room(backend: OpenAIBackend) -> tuple[float, bool]:
        return backend.learnt.context or math.inf, not backend.learnt.tokenizes

    return sorted(quiet or backends, key=room)


def paced(minute: Minute) -> Turn:
    """What waits until a minute has room for one more request of a probe."""

    async def turn() -> None:
        loop = asyncio.get_running_loop()
        while (free := minute.when(loop.time(), TRIAL_TOKENS)) > (now := loop.time()):
            await asyncio.sleep(free - now)
        minute.send(now, TRIAL_TOKENS)

    return turn
