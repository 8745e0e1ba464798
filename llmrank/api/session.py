"""A session: one model with its wrappers, its prompts and its journal, and plans run on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmrank.api.closing import Closing, Lifeline
from llmrank.backends import Model, connect, connect_encoder
from llmrank.backends.oracle import Oracle
from llmrank.backends.wrappers import (
    Cached,
    Capped,
    Caps,
    Hedged,
    Limited,
    Meter,
    Metered,
    Minute,
    ModelPool,
    Retrying,
    Routed,
)
from llmrank.engine import Engine, Finished, run_async, run_sync
from llmrank.errors import CapabilityError, InputError, SpecError
from llmrank.plan import Need, Plan
from llmrank.prompts import PromptSet, Truncation
from llmrank.prompts.render import KINDS, slot_of, want_of
from llmrank.request import Backend
from llmrank.store import Journal

if TYPE_CHECKING:
    from llmrank.backends.openai import OpenAIBackend

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """Which model answers, and how it is asked.

    `model` and `encoder` are names such as `openai:gpt-4.1-mini`; None is the server at `base_url`
    if there is one, else the small local model. `prompts` puts templates in the place of the
    default ones: a kind of ask or write task, and the name or path of a template. Of a longer
    passage `passage_words` or `passage_tokens` are shown, those that `truncation` says. A reasoning
    model may think for `thinking` tokens before it answers in text. `in_flight`
    requests at most are under way at a server, `rpm` and `tpm` limit requests and tokens in any
    minute, and `hedge` asks a second time where an answer takes far longer than usual. With
    `probe` a session with a journal first finds out what its server can do, if nothing beside the
    journal tells; about thirty tiny requests that the meter leaves out.
    """

    model: str | None = None
    base_url: str | None = None
    encoder: str | None = None
    encoder_url: str | None = None
    prompts: Mapping[str, str | Path] = field(default_factory=dict)
    passage_words: int | None = None
    passage_tokens: int | None = None
    truncation: Truncation | None = None
    in_flight: int = 32
    thinking: int = 0
    rpm: int | None = None
    tpm: int | None = None
    hedge: bool = False
    probe: bool = False
    caps: Caps = field(default_factory=Caps)

    def __post_init__(self) -> None:
        if self.thinking < 0:
            raise InputError(f"thinking must be at least 0 tokens, not {self.thinking}")
        if self.in_flight < 1:
            raise InputError(f"in_flight must be at least 1, not {self.in_flight}")
        if self.hedge and (self.rpm or self.tpm):
            raise InputError("hedge asks beyond a limit per minute; leave one of them out")


def check(settings: Settings, backend: Backend, needs: Collection[Need]) -> None:
    """Raise unless the backend can answer all that is needed, and its prompts are in order.

    `CapabilityError` where it cannot; `SpecError` for a prompt that cannot be read or cannot serve
    what is asked, or that stands in `settings` for something that is not asked.
    """
    for needed in needs:
        if (want := want_of(needed, backend.wants)) not in backend.wants:
            can = ", ".join(sorted(backend.wants))
            what = f"{needed.ask.__name__} ({want})"
            raise CapabilityError(f"{backend.identity} cannot answer {what}; it gives: {can}")
    worded = [needed for needed in needs if needed.ask in KINDS]
    prompts, usual = _prompts(settings), PromptSet()
    for needed in worded:
        template = prompts.slot(needed)
        prompts.check(needed)
        if needed.task and template.inputs != usual.slot(needed).inputs:
            takes, needs_ = ", ".join(template.inputs), ", ".join(usual.slot(needed).inputs)
            raise SpecError(
                f"prompt {template.name!r} takes {takes}; for {needed.task!r} it must be {needs_}"
            )
    slots = {slot_of(needed) for needed in worded}
    for given in settings.prompts:
        if given not in slots:
            asked = ", ".join(map(repr, sorted(slots))) or "nothing in words"
            raise SpecError(f"the prompt for {given!r} would not be used; what is asked is {asked}")


def demand_keys(model: Model) -> None:
    """`BackendError` where a server of the model has no key to send anything with."""
    for server in _servers(model):
        server.wire.demand_key()


def settle(
    model: Model, journal: Journal, minute: Callable[[Model], Minute] | None = None
) -> Model:
    """The model, which uses what its servers can do, as kept beside the journal.

    Where nothing is kept a server is probed if there is a `minute` for it, as that has room. Of a
    pool those servers are left that answer alike.
    """
    from llmrank.backends.probe import alike, keep, paced, recall

    servers = _servers(model)
    # A batch is tried by its first requests.
    if minute is not None and servers and model.batch == 1:
        turns = [paced(minute(server)) for server in servers]
        run_sync(keep(servers, journal.folders, turns))
    else:
        for server in servers:
            recall(server, journal.folders)
    if not isinstance(model, ModelPool) or len(servers) < len(model.members):
        return model
    kept = alike(servers)
    for server in servers:
        if server not in kept:
            run_sync(server.close())
    return ModelPool(kept) if kept != servers else model


def _servers(model: Model) -> list[OpenAIBackend]:
    from llmrank.backends.openai import OpenAIBackend

    members = model.members if isinstance(model, ModelPool) else [model]
    return [member for member in members if isinstance(member, OpenAIBackend)]


def _prompts(settings: Settings) -> PromptSet:
    return PromptSet(
        dict(settings.prompts),
        settings.passage_words,
        passage_tokens=settings.passage_tokens,
        truncation=settings.truncation,
        thinking=settings.thinking,
    )


class Session(Closing):
    """A model ready to answer; close it, or use it as a context manager.

    Answers are looked up in `journal` and stored there, when one is given.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal | None = None,
        *,
        model: Model | None = None,
        embeds: bool = False,
    ) -> None:
        self.settings, self.journal = settings, journal
        self.model = model or connect(settings.model, base_url=settings.base_url)
        self._minutes: dict[Model, Minute] = {}
        try:
            demand_keys(self.model)
            if journal is not None:
                self.model = settle(self.model, journal, self._minute if settings.probe else None)
        except BaseException:
            _release(self.model, journal)
            raise
        self.meter, self.encoder_meter = Meter(), Meter()
        judged = type(self.model) is Oracle or (settings.model or "").startswith("oracle:")
        self.prompts = replace(
            _prompts(settings),
            by_id=judged,
            pairs="pair" in self.model.wants,
            tokenizer=self.model.tokenizer,
        )
        self.encoder: Model | None = None
        self.backend = self._wrapped(self.model, self.meter, settings.caps)
        if embeds:
            self.encoder = connect_encoder(settings.encoder, base_url=settings.encoder_url)
            vectors = self._wrapped(self.encoder, self.encoder_meter, Caps())
            asked = sorted(self.model.wants - {"vectors"})
            self.backend = Routed({**dict.fromkeys(asked, self.backend), "vectors": vectors})
        self._open = Lifeline(self, partial(_release, self.backend, journal))

    def _wrapped(self, model: Model, meter: Meter, caps: Caps) -> Backend:
        folder = self.journal.folders[0] if self.journal is not None else None
        backend = patient(model, meter, self.settings, self._minute, folder)
        if caps != Caps():
            backend = Capped(backend, caps, model.counter.count)
        return Cached(backend, self.journal) if self.journal is not None else backend

    def _minute(self, server: Model) -> Minute:
        """One for each server: what a probe sends counts too."""
        return self._minutes.setdefault(server, _minute(self.settings, server))

    def check(self, needs: Collection[Need]) -> None:
        """Raise unless the model can answer all that is needed, as `check` says."""
        check(self.settings, self.backend, needs)

    async def run(self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T]) -> None:
        """Run plans; `finished` gets key, result and tally of each as it ends, in any order."""
        await run_async(self._engine().run(plans, finished))

    def run_sync(self, plans: Iterable[tuple[K, Plan[T]]], finished: Finished[K, T]) -> None:
        """`run` for ordinary code."""
        run_sync(self._engine().run(plans, finished))

    def _engine(self) -> Engine:
        if self._open.closed:
            raise InputError("this session or reranker is closed", remedy="make a new one")
        return Engine(self.backend, self.prompts, in_flight=self.settings.in_flight)

    @property
    def sent(self) -> Meter:
        """What was sent to the model and to the encoder, together."""
        one, other = self.meter, self.encoder_meter
        return Meter(
            requests=one.requests + other.requests,
            faults=one.faults + other.faults,
            cancelled=one.cancelled + other.cancelled,
            usage=one.usage + other.usage,
            seconds=one.seconds + other.seconds,
            models=one.models | other.models,
        )

    def describe(self) -> dict[str, object]:
        """What a manifest says of the model, as named and as reported, and of how it is asked."""
        limits = ("passage_words", "passage_tokens", "truncation", "thinking")
        described: dict[str, object] = {
            **{name: getattr(self.settings, name) for name in limits},
            "model": self.model.identity,
            "reported": sorted(self.meter.models),
            "tokens": self.model.tokenizer.counting,
            "prompts": {slot: t.sha256 for slot, t in sorted(self.prompts.used.items())},
        }
        if servers := _servers(self.model):
            described["servers"] = [_told(server) for server in servers]
        if self.encoder is not None:
            described["encoder"] = self.encoder.identity
        return described

    def close(self) -> None:
        """Close connections and the journal; a second time does nothing."""
        self._open.close()


def _told(server: OpenAIBackend) -> dict[str, str]:
    """What is known of a server; of one that was sent nothing that may be little."""
    known = server.learnt
    return {"url": server.url, "kind": known.dialect, "version": known.version}


def _minute(settings: Settings, server: Model) -> Minute:
    return Minute(rpm=settings.rpm, tpm=settings.tpm, count=server.counter.count)


def patient(
    model: Model,
    meter: Meter,
    settings: Settings,
    minute: Callable[[Model], Minute] | None = None,
    folder: Path | None = None,
) -> Backend:
    """The model, metered, with limits and retries where it is a server; each of a pool its own.

    `minute` tells the one of a server, by default a new one. An OpenAI-compatible server is greeted
    before its first request; the folder keeps what it says.
    """
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.backends.probe import Greeted, Greeter

    minute = minute or partial(_minute, settings)
    kinds: dict[str, str] = {}

    def limited(server: Model) -> Backend:
        metered: Backend = Metered(server, meter)
        if settings.hedge:
            metered = Hedged(metered)
        limits = Limited(metered, settings.in_flight, minute=minute(server))
        if not isinstance(server, OpenAIBackend):
            return limits
        return Greeted(limits, Greeter(server, folder, kinds))

    if model.batch > 1:
        return Metered(model, meter)
    return Retrying(model.each(limited) if isinstance(model, ModelPool) else limited(model))


def _release(backend: Backend, journal: Journal | None) -> None:
    run_sync(backend.close())
    if journal is not None:
        journal.close()
