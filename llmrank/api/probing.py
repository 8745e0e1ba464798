"""Trying out what a model can do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmrank.backends import Model, addresses, connect
from llmrank.engine import run_sync
from llmrank.errors import BackendError
from llmrank.plan import Grade
from llmrank.prompts.render import want_of
from llmrank.request import Backend, Reply, Request, Want
from llmrank.rerank import METHODS, Method
from llmrank.types import Document, Query

if TYPE_CHECKING:
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.backends.probe import Probe

_SHARED = ("url", "models", "seconds", "sample")
"""What may differ among the servers of a pool that can do the same."""


def probe_each(model: str | None = None, base_url: str | None = None) -> list[dict[str, object]]:
    """What a model can do at each of the base URLs; of a pool's dead server its `error` alone.

    Raises `BackendError` where none can be used.
    """
    urls = addresses(base_url)
    if len(urls) < 2:
        return [probe(model, base_url)]
    found: list[dict[str, object]] = []
    for url in urls:
        try:
            found.append(probe(model, url))
        except BackendError as error:
            found.append({"url": url, "error": str(error)})
    if all("error" in one for one in found):
        raise BackendError("; ".join(str(one["error"]) for one in found))
    return found


def differences(found: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """In what the servers of a pool differ: the values of each, as far as they answer."""
    rows = [one for one in found if "error" not in one]
    names = dict.fromkeys(name for row in rows for name in row if name not in _SHARED)
    values = {name: [_brief(row.get(name)) for row in rows] for name in names}
    return {name: told for name, told in values.items() if len(set(told)) > 1}


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return "yes" if value["works"] else "no"
    return "not told" if value in (None, "") else str(value)


def probe(model: str | None = None, base_url: str | None = None) -> dict[str, object]:
    """What one model can do.

    A server is asked and a model that grades pairs is given two to grade; another in this process
    is looked at.
    """
    backend = connect(model, base_url=base_url)
    from llmrank.backends.openai import OpenAIBackend

    if isinstance(backend, OpenAIBackend):
        return _shown(run_sync(_ask(backend)))
    tried = {"tried": run_sync(_grade(backend))} if "pair" in backend.wants else {}
    methods = {
        name: "yes" if _wants(name, backend) <= backend.wants else "no"
        for name, family in METHODS.items()
        if not family.inner
    }
    return {
        "model": backend.identity,
        "gives": ", ".join(sorted(backend.wants)),
        **tried,
        **methods,
    }


async def _ask(server: OpenAIBackend) -> Probe:
    from llmrank.backends.probe import probe as try_out

    try:
        return await try_out(server)
    finally:
        await server.close()


async def _grade(backend: Model) -> str:
    """What a model says of a passage on the topic and of one off it."""
    from llmrank.backends._trials import ABOUT

    query, texts = ABOUT
    labels = {"yes": ("yes",), "no": ("no",)}
    requests = [
        Request(
            ask=Grade(Query("q", query), Document(str(i), text)),
            want="pair",
            texts=(query, text),
            labels=labels,
        )
        for i, text in enumerate(texts)
    ]
    try:
        replies = await backend.answer(requests)
    finally:
        await backend.close()
    on, off = map(_graded, replies)
    return f"a passage on the topic: {on}; one off it: {off}"


def _graded(reply: Reply) -> str:
    if reply.error or "yes" not in reply.label_logprobs:
        return f"no answer ({reply.error or reply.finish})"
    return f"P(yes) = {math.exp(reply.label_logprobs['yes']):.4f}"


def _shown(found: Probe) -> dict[str, object]:
    """A probe as one table: the server, what it can do, a sample, and what methods will use."""
    whole = asdict(found)
    can, sample = whole.pop("can"), whole.pop("sample")
    del whole["learnt"]
    return {**whole, **can, "sample": sample, **found.uses}


def _wants(method: str, backend: Backend) -> set[Want]:
    """What a method needs of this backend."""
    return {want_of(needed, backend.wants) for needed in Method(method).needs}
