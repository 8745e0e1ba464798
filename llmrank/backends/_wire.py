"""One HTTP call to an OpenAI-compatible server, and what its failures mean."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from llmrank.backends._answers import Failure, retry_after
from llmrank.backends.dialects import DIALECTS, ROOT, by_url
from llmrank.errors import BackendError, InputError

if TYPE_CHECKING:
    import openai
    from openai._types import RequestOptions

OPENAI_URL = "https://api.openai.com/v1"

_UNSENT = [
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
]
"""What the SDK tells about this machine in every request: no server needs it, and it takes time."""

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
        self.url = urlunsplit(bare._replace(netloc=parts.netloc.rpartition("@")[2]))
        """Where the server is, without credentials and query."""
        self._query = dict(parse_qsl(parts.query))
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ("EMPTY" if given else "")
        if not self._key:
            raise BackendError("no API key: set OPENAI_API_KEY, or name a server with --base-url")
        self._secrets = [s for s in (self._key, parts.password) if s and s != "EMPTY"]
        self.dialect = by_url(self.url)
        self._timeout, self._model = timeout, model
        self._opened: openai.AsyncOpenAI | None = None

    @property
    def account(self) -> tuple[str, str]:
        """The address with its credentials, and the key."""
        return self._url, self._key

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close()

    async def send(self, path: str, body: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
        """One HTTP call, POST with a body and GET without, and the JSON that it returned.

        Raises `Failure`, or `Rejection` where asking again would be of no use.
        """
        client = self._client()
        import openai

        options: RequestOptions = _unsigned() if self._key_header else {}
        whole = self._url.removesuffix("/v1") + path[1:] if path.startswith(ROOT) else path
        try:
            async with asyncio.timeout(self._timeout):
                # As text: the SDK's models cost more than the whole rest of reading a reply, and
                # do not check anything.
                if body is None:
                    text = await client.get(whole, cast_to=str, options=options)
                else:
                    text = await client.post(whole, cast_to=str, body=body, options=options)
        except TimeoutError:
            raise self._late() from None
        except openai.APIStatusError as error:
            headers = error.response.headers
            told = error.body or error.message
            self._raise_status(path, error.status_code, told, retry_after(headers))
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except UnicodeEncodeError:
            raise Failure("the text holds lone surrogates, which cannot be sent") from None
        return self._read(path, text)

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

    @property
    def _key_header(self) -> str:
        """The header of the key, where it is not the usual one."""
        header = DIALECTS[self.dialect].key_header
        return "" if header == "Authorization" else header

    def _client(self) -> openai.AsyncOpenAI:
        if self._opened is None:
            import openai

            try:
                transport = openai.DefaultAioHttpClient()
            except RuntimeError as error:
                raise BackendError(
                    "the HTTP transport is missing: pip install 'openai[aiohttp]'"
                ) from error
            connect = min(_CONNECT_SECONDS, self._timeout)
            headers = dict.fromkeys(_UNSENT, cast("str", openai.Omit()))
            if header := self._key_header:
                headers[header] = self._key
            self._opened = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self._url,
                max_retries=0,
                timeout=openai.Timeout(self._timeout, connect=connect),
                http_client=transport,
                default_headers=headers,
                default_query=self._query,
            )
        return self._opened

    def _late(self) -> Failure:
        told = f"{self.url} did not answer within {self._timeout:g} s"
        return Failure(told, transient=True, late=True)

    def _unreachable(self, error: BaseException) -> Failure:
        # The SDK calls most lost connections a timeout; the first cause knows better.
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, TimeoutError):
            return self._late()
        told = self._told(str(cause) or type(cause).__name__)
        return Failure(f"no answer from {self.url}: {told}", transient=True)

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


def _unsigned() -> RequestOptions:
    """Keeps the SDK from sending the key as `Authorization`."""
    import openai

    return {"headers": {"Authorization": openai.Omit()}}


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
