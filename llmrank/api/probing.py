"""Trying out what a model can do."""

from __future__ import annotations

from dataclasses import asdict

from llmrank.api.session import NEEDS
from llmrank.backends import connect
from llmrank.engine import run_sync
from llmrank.rerank import METHODS


def probe(model: str | None = None, base_url: str | None = None) -> dict[str, object]:
    """What a model can do: a server is asked, a model in this process is looked at."""
    backend = connect(model, base_url=base_url)
    from llmrank.backends.openai import OpenAIBackend

    if isinstance(backend, OpenAIBackend):
        from llmrank.backends.probe import probe as ask_server

        return asdict(run_sync(ask_server(backend)))
    methods = {
        name: "yes" if NEEDS[family.asks] in backend.wants else "no"
        for name, family in METHODS.items()
    }
    return {"model": backend.identity, "gives": ", ".join(sorted(backend.wants)), **methods}
