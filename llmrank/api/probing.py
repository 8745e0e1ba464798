"""Trying out what a model can do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmrank.backends import connect
from llmrank.engine import run_sync
from llmrank.prompts.render import want_of
from llmrank.request import Backend, Want
from llmrank.rerank import METHODS, Method

if TYPE_CHECKING:
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.backends.probe import Probe


def probe(model: str | None = None, base_url: str | None = None) -> dict[str, object]:
    """What a model can do: a server is asked, a model in this process is looked at."""
    backend = connect(model, base_url=base_url)
    from llmrank.backends.openai import OpenAIBackend

    if isinstance(backend, OpenAIBackend):
        return _shown(run_sync(_ask(backend)))
    methods = {
        name: "yes" if _wants(name, backend) <= backend.wants else "no"
        for name, family in METHODS.items()
        if not family.inner
    }
    return {"model": backend.identity, "gives": ", ".join(sorted(backend.wants)), **methods}


async def _ask(server: OpenAIBackend) -> Probe:
    from llmrank.backends.probe import probe as try_out

    try:
        return await try_out(server)
    finally:
        await server.close()


def _shown(found: Probe) -> dict[str, object]:
    """A probe as one table: the server, what it can do, a sample, and what methods will use."""
    whole = asdict(found)
    can, sample = whole.pop("can"), whole.pop("sample")
    for name in ("settled", "learnt"):
        del whole[name]
    return {**whole, **can, "sample": sample, **found.uses}


def _wants(method: str, backend: Backend) -> set[Want]:
    """What a method needs of this backend."""
    return {want_of(needed, backend.wants) for needed in Method(method).needs}
