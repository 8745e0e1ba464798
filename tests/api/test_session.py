from __future__ import annotations

import json
from pathlib import Path

from llmrank import Query, Session, Settings
from llmrank.api import expand_run
from llmrank.expand import parse
from llmrank.store import RunFolder
from tests.api.judges import MODEL
from tests.api.test_retriever import ENCODER, embed
from tests.servers import Server, chat, refuses, sends


def test_requests_to_the_encoder_are_told(server: Server, tmp_path: Path) -> None:
    server.script("/chat/completions", refuses(429, "slow down"), sends(chat("All about bread.")))
    server.script("/embeddings", refuses(503, "loading"), refuses(429, "slow down"), embed)
    folder = RunFolder(tmp_path / "run")
    settings = Settings(MODEL, server.url, encoder=ENCODER, encoder_url=server.url)
    with Session(settings, folder.journal(), embeds=True) as session:
        expand_run(session, parse("hyde(n=1)"), [Query("q", "bread")], folder)
        both = session.sent
        assert (session.meter.requests, session.encoder_meter.requests) == (2, 4)
        assert both.requests == 6
        assert both.faults == {"HTTP 429": 2, "HTTP 503": 1}
        assert both.usage == session.meter.usage + session.encoder_meter.usage
        assert both.models == session.meter.models | session.encoder_meter.models
    told = json.loads((folder.path / "summary.json").read_text())
    assert (told["requests"], told["embedding_requests"]) == (2, 4)
    assert told["failed_requests"] == {"HTTP 429": 2, "HTTP 503": 1}
