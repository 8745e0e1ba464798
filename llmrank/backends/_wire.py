"""One HTTP call to an OpenAI-compatible server, and what its failures mean."""

from __future__ import annotations

import asyncio
import json
import os
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from llmrank.backends._answers import Failure, retry_after
from llmrank.backends.dialects import DIALECTS, ROOT, by_url
from llmrank.errors import BackendError, InputError

if TYPE_CHECKING:
    import aiohttp

OPENAI_URL = "https://api.openai.com/v1"

Turn = Callable[[], Awaitable[None]]
"""Waits until a call may be made."""

_JSON = {"Content-Type": "application/json"}
_CONNECT_SECONDS = 10.0
_NO_SUCH_MODEL = re.compile(r"model.{0,120}?(not exist|not found|no access)|model_not_found", re.S)
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum context|too many tokens|prompt is too long"
    r"|exceeds? the (available )?context|inputs.{0,60}must have less than|longer than the maximum",
    re.S,
)
_FILTERED = re.compile(r"content_filter|responsibleaipolicyviolation|content management policy")


class Rejection(BackendError):
    """The server refuses every request of this kind: key, account, model or route.

    `told` is what it said, in short.
    """

    def __init__(self, message: str, status: int, told: str) -> None:
        super().__init__(message)
        self.status, self.told = status, f"HTTP {status}: {told}"


class NoRoute(Rejection):
    """The server has no such route, or not for this model."""


class Wire:
    """Sends requests to one server. Connections belong to the event loop of the first request.

    The key is `api_key`, else $OPENAI_API_KEY; the server is `base_url`, else $OPENAI_BASE_URL,
    else OpenAI; a query in its address, such as Azure's `?api-version=`, goes with every request.
    `timeout` is in seconds and holds for a whole request, however slowly an answer arrives.
    """

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float, model: str
    ) -> None:
        given = base_url or os.environ.get("OPENAI_BASE_URL")
        parts = _checked(given or OPENAI_URL)
        bare = parts._replace(query="", fragment="", path=parts.path.rstrip("/"))
        self._url = urlunsplit(bare)
        self.url: str = urlunsplit(bare._replace(netloc=parts.netloc.rpartition("@")[2]))
        """Where the server is, without credentials and query."""
        self._query = parts.query
        named = parts.username is not None
        self._user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if named else None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ("EMPTY" if given else "")
        self._secrets = [s for s in (self._key, parts.password) if s and s != "EMPTY"]
        # Looked up once: aiohttp would do it for every request, in threads.
        host = parts.hostname or ""
        self._proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
        self.dialect = by_url(self.url)
        self._timeout, self._model = timeout, model
        self._turn: Turn | None = None
        self._opened: aiohttp.ClientSession | None = None

    def demand_key(self) -> None:
        """Raise where there is no key to send anything with."""
        if not self._key:
            raise BackendError("no API key: set OPENAI_API_KEY, or name a server with --base-url")

    @property
    def account(self) -> tuple[str, str]:
        """The address with its credentials, and the key."""
        return self._url, self._key

    @contextmanager
    def trying(self, seconds: float, turn: Turn | None = None) -> Iterator[None]:
        """Meanwhile a call has so many seconds at most, after it has waited for its turn."""
        usual = self._timeout
        self._timeout, self._turn = min(seconds, usual), turn
        try:
            yield
        finally:
            self._timeout, self._turn = usual, None

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close()

    async def send(self, path: str, body: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
        """One HTTP call, POST with a body and GET without, and the JSON that it returned.

        Raises `Failure`, or `Rejection` where asking again would be of no use.
        """
        if body is None:
            return await self._call("GET", path)
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Failure("the text holds lone surrogates, which cannot be sent") from None
        return await self._call("POST", path, data=content, headers=_JSON)

    async def _call(self, method: str, path: str, **content: Any) -> Any:  # noqa: ANN401 - JSON
        session = self._session()
        import aiohttp

        if self._turn is not None:
            await self._turn()

        try:
            async with (
                asyncio.timeout(self._timeout),
                session.request(
                    method, self._address(path), proxy=self._proxy, **content
                ) as response,
            ):
                text = await response.text("utf-8", "replace")
        except TimeoutError:
            raise self._late() from None
        except (aiohttp.ClientError, OSError) as error:
            told = self._told(str(error) or type(error).__name__)
            raise Failure(f"no answer from {self.url}: {told}", transient=True) from None
        if response.status != 200:
            wait = retry_after(response.headers)
            self._raise_status(path, response.status, _body(text), wait)
        return self._read(path, text)

    def _address(self, path: str) -> str:
        root = self.url.removesuffix("/v1") if path.startswith(ROOT) else self.url
        whole = root + path.removeprefix(ROOT)
        if not self._query:
            return whole
        return f"{whole}{'&' if '?' in whole else '?'}{self._query}"

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self.demand_key()
            import aiohttp

            # The SDK of `openai` costs several times the work of a call, whatever its transport.
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                headers={"User-Agent": "llmrank", **self._signed()},
            )
        return self._opened

    def _signed(self) -> dict[str, str]:
        """The headers that say who asks."""
        header = DIALECTS[self.dialect].key_header
        if header != "Authorization":
            return {header: self._key}
        if self._user is not None:
            word = b64encode(self._user.encode()).decode()
            return {"Authorization": f"Basic {word}"}
        return {"Authorization": f"Bearer {self._key}"}

    def _read(self, path: str, text: str) -> Any:  # noqa: ANN401 - JSON
        try:
            data = json.loads(text)
        except ValueError:
            raise Failure(
                f"{self.url} answered with something that is not JSON: {self._told(text)[:80]!r}",
                status=200,
                transient=True,
            ) from None
        error = data.get("error") if isinstance(data, dict) else None
        if error:
            # Some servers say what went wrong in the body alone.
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 200
            self._raise_status(path, status, error, None)
        return data

    def _late(self) -> Failure:
        told = f"{self.url} did not answer within {self._timeout:g} s"
        return Failure(told, transient=True, late=True)

    def _raise_status(self, path: str, status: int, body: object, wait: float | None) -> NoReturn:
        """Raise what an HTTP status other than 200, or an error in the body, means."""
        told, codes = self._told(body), _codes(body)
        where = f"{self.url} (HTTP {status}): {told}"
        said = f"{codes} {told}".lower()
        if status in (401, 403) and not _FILTERED.search(said):
            raise Rejection(
                f"not allowed by {where}; check OPENAI_API_KEY and what it may use", status, told
            ) from None
        if status == 402 or "insufficient_quota" in codes:
            raise Rejection(f"no credit left at {where}; check the account", status, told) from None
        if status in (404, 405, 501):
            if status == 404 and _NO_SUCH_MODEL.search(said):
                raise Rejection(f"unknown model at {where}; check --model", status, told) from None
            raise NoRoute(
                f"no {path.removeprefix(ROOT)} for {self._model} at {where}; "
                "check that the base URL ends in /v1",
                status,
                told,
            ) from None
        raise self._failure(status, told, said, wait) from None

    def _failure(self, status: int, told: str, said: str, wait: float | None) -> Failure:
        """What went wrong with one request."""
        if _FILTERED.search(said):
            return Failure(f"declined: {told}", status=status, finish="content_filter")
        if status != 429 and _TOO_LONG.search(said):
            return Failure(
                f"HTTP {status} from {self.url}: the prompt does not fit the model's context "
                f"length ({told}): show fewer or shorter passages (--passage-words, a smaller "
                "window)",
                status=status,
                overflow=True,
            )
        if status == 200:
            message = f"{self.url} answered with an error: {told}"
            return Failure(message, status=200, transient=True)
        transient = status in (408, 409, 429) or status >= 500
        return Failure(
            f"HTTP {status} from {self.url}: {told}",
            status=status,
            transient=transient,
            retry_after=wait if transient else None,
        )

    def _told(self, body: object) -> str:
        """What a server said went wrong, on one line and without secrets."""
        while isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body.get("error") or str(body)
        text = " ".join(str(body).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:300]


def _body(text: str) -> object:
    """What an error answer holds."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _codes(body: object) -> str:
    """The codes and types that an error holds, at any depth."""
    if not isinstance(body, dict):
        return ""
    own = (str(body[name]) for name in ("code", "type") if body.get(name))
    return " ".join([*own, *(_codes(body.get(name)) for name in ("error", "innererror"))])


def _checked(url: str) -> Any:  # noqa: ANN401 - urlsplit's result type has no public name
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the base URL is not one", remedy="write it like http://localhost:8000/v1")
    return parts
