"""Files and batches of OpenAI's Batch API: up, wait, down."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from llmrank.backends._answers import Failure
from llmrank.backends._patience import patiently
from llmrank.backends._wire import NoRoute, Wire
from llmrank.errors import BackendError, CapabilityError

T = TypeVar("T")
Row = Mapping[str, Any]

MOST_LINES, MOST_BYTES = 50_000, 200_000_000
"""What OpenAI takes in one batch."""

TAG = "llmrank"
"""The entry of a batch's metadata that says whose requests it holds."""

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

_SAMPLED, _PREFIX = 30, 16
_FIRST_LOOK, _GROWTH = 2.0, 1.5
_ATTEMPTS_TO_LOOK = 60
_PAGES = 20

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Line:
    """One request as it goes into a file, and where its answer goes; `size` is 1 for a prompt and
    the number of texts for embeddings."""

    path: str
    content: bytes
    size: int
    answer: asyncio.Future[dict[str, Any]]


class FileWire(Wire):
    """A wire that also takes files."""

    async def upload(self, name: str, content: bytes) -> Any:  # noqa: ANN401 - JSON
        """Put up the requests of a batch; raises as `send` does."""
        import aiohttp

        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename=name, content_type="application/jsonl")
        return await self._call("POST", "/files", data=form)

    def _read(self, path: str, text: str) -> Any:  # noqa: ANN401 - JSON
        return text if path.endswith("/content") else super()._read(path, text)

    def result(self, path: str, row: Row | Failure) -> dict[str, Any]:
        """The answer in a line of a batch's files; raises what the same answer raises live."""
        if isinstance(row, Failure):
            raise row
        response, error = row.get("response"), row.get("error")
        if not isinstance(response, dict):
            code = error.get("code") if isinstance(error, dict) else None
            told = self._told(error or "the line holds no answer")
            raise Failure(f"{self.url}: {told}", transient=code == "batch_expired")
        status, body = response.get("status_code"), response.get("body")
        if status != 200 or not isinstance(body, dict) or body.get("error"):
            self._raise_status(path, status if isinstance(status, int) else 500, body, None)
        return body


class Batches:
    """The batches of one account: new ones for lines, and those that were made before."""

    def __init__(self, wire: FileWire, poll: float, most: int) -> None:
        self._wire, self._poll, self._most = wire, poll, most
        self._used: set[str] = set()

    async def answer(self, lines: Mapping[str, Line]) -> None:
        """Answer lines by batches, one after another: what waits at a server is limited."""
        for path in dict.fromkeys(line.path for line in lines.values()):
            own = {key: line for key, line in lines.items() if line.path == path}
            for part in parts(own, self._most, MOST_BYTES):
                rows = await self._run(path, part)
                for key, line in part.items():
                    try:
                        line.answer.set_result(self._wire.result(path, rows[key]))
                    except (Failure, BackendError) as error:
                        line.answer.set_exception(error)

    async def _run(self, path: str, lines: Mapping[str, Line]) -> dict[str, Row | Failure]:
        """What a batch has for every line, or why it has nothing."""
        ended = await self._ended(await self._made(path, lines))
        if ended["status"] == "failed":
            errors = (ended.get("errors") or {}).get("data") or [{}]
            if errors[0].get("code") == "token_limit_exceeded" and len(lines) > 1:
                keys = list(lines)
                halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
                first, second = ({key: lines[key] for key in half} for half in halves)
                return await self._run(path, first) | await self._run(path, second)
            told = errors[0].get("message") or "it does not say why"
            raise BackendError(f"{self._wire.url} refused the batch {ended['id']}: {told}")
        rows = await self._rows(ended)
        missing = Failure(
            f"the batch {ended['id']} is {ended['status']} and holds no answer to this request",
            transient=ended["status"] in ("completed", "expired"),
        )
        return {key: rows.get(key, missing) for key in lines}

    async def _made(self, path: str, lines: Mapping[str, Line]) -> Row:
        """A new batch."""
        content = b"".join(line.content for line in lines.values())
        uploaded = await self._call(partial(self._wire.upload, f"{TAG}.jsonl", content))
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": f"/v1{path}",
            "completion_window": "24h",
            "metadata": {TAG: _sample(lines)},
        }
        asked = False

        async def make() -> Row:
            nonlocal asked
            # An answer that got lost may have been about a batch that was made.
            for row in await self._listed() if asked else ():
                if row.get("input_file_id") == uploaded["id"]:
                    return row
            asked = True
            made: Row = await self._wire.send("/batches", body)
            return made

        made = await self._call(make)
        self._used.add(made["id"])
        log.info("batch %s: %d requests for %s", made["id"], len(lines), path)
        return made

    async def _ended(self, batch: Row) -> Row:
        """The batch when it has ended."""
        wait, told = _FIRST_LOOK, ""
        try:
            while batch["status"] not in ENDED:
                if (now := _progress(batch)) != told:
                    log.info("batch %s: %s", batch["id"], told := now)
                await asyncio.sleep(min(wait, self._poll))
                wait *= _GROWTH
                path = f"/batches/{batch['id']}"
                batch = await self._call(partial(self._wire.send, path), _ATTEMPTS_TO_LOOK)
        except asyncio.CancelledError:
            log.warning(
                "batch %s goes on at %s: started again, the same run takes up its answers",
                batch["id"],
                self._wire.url,
            )
            raise
        log.info("batch %s: %s", batch["id"], _progress(batch))
        return batch

    async def _rows(self, batch: Row) -> dict[str, Row | Failure]:
        """What the files of a batch hold, by key; a line that cannot be read is left out."""
        rows: dict[str, Row | Failure] = {}
        for name in filter(None, (batch.get("error_file_id"), batch.get("output_file_id"))):
            text = await self._call(partial(self._wire.send, f"/files/{name}/content"))
            # Texts may hold other characters that end a line.
            for line in text.split("\n"):
                try:
                    row = json.loads(line)
                    rows[row["custom_id"]] = row
                except (ValueError, TypeError, KeyError):
                    continue
        return rows

    async def earlier(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """Answers to the keys in batches that another process has made."""
        found: dict[str, dict[str, Any]] = {}
        prefixes = {key[:_PREFIX] for key in keys}
        for batch in await self._call(self._listed):
            held = (batch.get("metadata") or {}).get(TAG, "").split(",")
            if batch["id"] in self._used or prefixes.isdisjoint(held):
                continue
            self._used.add(batch["id"])
            log.info("batch %s: taken up again", batch["id"])
            try:
                rows = await self._rows(await self._ended(batch))
            except CapabilityError:
                continue  # Its files are gone.
            for key in rows.keys() & keys:
                try:
                    found[key] = self._wire.result("", rows[key])
                except (Failure, BackendError):
                    continue  # Asked again, as in any other run.
        return found

    async def _listed(self) -> list[Row]:
        """The latest batches of the account, the latest first."""
        found: dict[str, Row] = {}
        after = ""
        for _ in range(_PAGES):
            page = await self._wire.send(f"/batches?limit=100{after}")
            rows = [row for row in page.get("data") or () if row["id"] not in found]
            found |= {row["id"]: row for row in rows}
            if not (rows and page.get("has_more")):
                break
            after = f"&after={rows[-1]['id']}"
        return list(found.values())

    async def _call(self, call: Callable[[], Awaitable[T]], attempts: int = 6) -> T:
        """What a call about batches returns; there is no answer to anything without it."""
        try:
            return await patiently(call, attempts)
        except NoRoute as error:
            raise CapabilityError(f"{self._wire.url} has no batches ({error.told})") from None
        except Failure as failure:
            raise BackendError(str(failure)) from None


def parts(lines: Mapping[str, Line], most: int, most_bytes: int) -> Iterator[dict[str, Line]]:
    """Lines in groups that one batch takes, by their sizes and their bytes, in order."""
    part: dict[str, Line] = {}
    size = length = 0
    for key, line in lines.items():
        full = size + line.size > most or length + len(line.content) > most_bytes
        if part and full:
            yield part
            part, size, length = {}, 0, 0
        part[key] = line
        size += line.size
        length += len(line.content)
    if part:
        yield part


def _sample(keys: Collection[str]) -> str:
    """Some keys of a batch, abridged, for its metadata (512 characters).

    The smallest ones: whoever asks for a good part of the batch again has some of them too.
    """
    return ",".join(key[:_PREFIX] for key in sorted(keys)[:_SAMPLED])


def _progress(batch: Row) -> str:
    counts = batch.get("request_counts") or {}
    done, failed, total = (counts.get(name) or 0 for name in ("completed", "failed", "total"))
    return f"{batch['status']}, {done} of {total} answered, {failed} failed"
