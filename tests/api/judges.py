"""A scripted server that judges: a passage is as relevant as the number behind its word `worth`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from tests.servers import Body, Server, chat

MODEL = "openai:judge"


def passage(worth: int, about: str = "") -> str:
    """A passage of a stated worth."""
    return f"A text {about} worth {worth}".replace("  ", " ")


async def answer(_request: web.Request, body: Body) -> web.StreamResponse:
    """Order the passages shown, or say how relevant the one passage is."""
    asked = body["messages"][-1]["content"]
    shown = re.findall(r"^\[(\d+)\].*?worth (\d+)", asked, re.MULTILINE)
    if shown:
        best = sorted(shown, key=lambda found: -int(found[1]))
        return web.json_response(chat(" > ".join(f"[{number}]" for number, _ in best)))
    worth = int(re.findall(r"worth (\d+)", asked)[0])
    return web.json_response(chat("Yes", top={"Yes": -5.0 / (1 + worth), "No": -1.0}))


def sent(server: Server) -> int:
    """How many chats the server was asked for."""
    return len(server.bodies("/chat/completions"))


def prompts(server: Server) -> Sequence[str]:
    """The last turn of every chat, as the server got it."""
    return [body["messages"][-1]["content"] for body in server.bodies("/chat/completions")]
