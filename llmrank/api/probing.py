"""Trying out what a model can do."""

from __future__ import annotations

from dataclasses import asdict

from llmrank.backends import connect
from llmrank.engine import run_sync
from llmrank.prompts.render import want_of
from llmrank.rerank import METHODS, Method


def probe(model: str | None = None, base_url: str | None = None) -> dict[str, object]:
    """What a model can do: a server is asked, a model in this process is looked at."""
    backend = connect(model, base_url=base_url)
    from llmrank.backends.openai import OpenAIBackend
    from llmrank.backends.probe import Probe
    from llmrank.backends.probe import probe as try_out

    async def ask_server(server: OpenAIBackend) -> Probe:
        try:
            return await try_out(server)
        finally:
            await server.close()

    if isinstance(backend, OpenAIBackend):
        found = run_sync(ask_server(backend))
        return {**asdict(found), **found.uses}
    methods = {
        name: "yes" if {want_of(n) for n in Method(name).needs} <= backend.wants else "no"
        for name, family in METHODS.items()
        if not family.inner
    }
    return {"model": backend.identity, "gives": ", ".join(sorted(backend.wants)), **methods}
