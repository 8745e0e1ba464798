"""Finding out what an OpenAI-compatible server can do, each thing by its effect, and keeping it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmrank.backends._trials import Capability, Trials
from llmrank.backends.dialects import DIALECTS, LIKELIHOOD, THINKING_OFF, UNKNOWN
from llmrank.backends.openai import Learnt, OpenAIBackend
from llmrank.errors import BackendError

FILE = "probe.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a server that answered can do with one model.

    `server` is its dialect, `version` and `models` what it says of itself, `context` the tokens
    that a prompt and its answer may have together: empty or None where it does not say. `seconds`
    is the time of a one-token call. `can` holds every capability by name. `sample` are the real
    probabilities of Yes and No for a question whose answer is obvious, empty without any.
    `settled` is false where trouble left something open. `learnt` is what the backend uses.
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
    settled: bool
    learnt: Learnt

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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = {"format": FORMAT, "servers": {**_kept(folder), self._name: asdict(self)}}
        draft = folder / f"{FILE}.{os.getpid()}"
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        draft.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path, url: str, model: str) -> Probe | None:
        """What is kept of a server and a model; None where nothing is, or nothing readable."""
        try:
            return cls._from(_kept(folder)[_key(url, model)])
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

    @property
    def _name(self) -> str:
        return _key(self.url, self.model)


def _key(url: str, model: str) -> str:
    return f"{url} {model}"


def _kept(folder: Path) -> dict[str, Any]:
    """The rows of a folder's file; none where it is absent, broken or of another format."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return dict(content["servers"]) if content["format"] == FORMAT else {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


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


async def probe(backend: OpenAIBackend, *, wait: float = 0.5) -> Probe:
    """What the backend's server can do with its model, found out with about thirty tiny requests.

    The backend uses what was found from then on. A request that fails for a moment is put again
    twice, after `wait` seconds and twice that, or as long as the server asks. Raises `BackendError`
    where nothing answers, or where the key, the account or the model is refused; a missing
    capability is never an error.
    """
    trials = Trials(backend, wait)
    await trials.identify()
    can = await trials.all()
    if trials.blocked and not (can["chat"] or can["completions"] or can["embeddings"]):
        raise BackendError(trials.blocked[0])
    route = backend.dialect.tokenizer
    # `tokens.Served` speaks to these.
    served = route is not None and route.field in ("prompt", "content")
    tokenizes = bool(can["tokenizer"]) and served
    backend.adopt(replace(backend.learnt, context=trials.context, tokenizes=tokenizes))
    return Probe(
        url=backend.url,
        model=backend.model,
        server=backend.learnt.dialect,
        version=trials.version,
        models=trials.models,
        context=trials.context,
        seconds=trials.seconds,
        can=can,
        sample=trials.sample,
        settled=not trials.blocked,
        learnt=backend.learnt,
    )


def recall(backend: OpenAIBackend, folders: Sequence[Path]) -> bool:
    """Make a backend use what one of the folders keeps of its server; whether one does."""
    for folder in folders:
        found = Probe.load(folder, backend.url, backend.model)
        # A dialect that the user names goes before what was found.
        if found is not None and backend.learnt.dialect in (UNKNOWN, found.learnt.dialect):
            backend.adopt(found.learnt)
            return True
    return False


async def keep(backend: OpenAIBackend, folder: Path) -> None:
    """Probe a backend's server and keep what was found in a folder, if no trouble left it open."""
    found = await probe(backend)
    if found.settled:
        found.save(folder)
