"""Counting tokens without ever waiting for the network."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

CHARACTERS_A_TOKEN = 4

_O200K = (
    "fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
)
_CACHED = {
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}
"""Encodings with the name of their file in tiktoken's cache and its SHA-256. tiktoken fetches a
file that is absent or damaged, so both are checked before it is asked."""


def estimate(text: str) -> int:
    """Tokens of a text: one for four ASCII characters, rounded up, and one for every other."""
    plain = sum(map(str.isascii, text))
    return -(-plain // CHARACTERS_A_TOKEN) + len(text) - plain


def counter(model: str) -> tuple[Callable[[str], int], str]:
    """A function that counts the tokens of a text, and how it counts in words.

    tiktoken counts where it knows the model and has the encoding in its cache; everything else is
    an estimate.
    """
    name = _encoding_name(model)
    if name in _CACHED and _is_cached(*_CACHED[name]):
        return _encoder(name), f"tiktoken {name}"
    return estimate, f"estimate: {CHARACTERS_A_TOKEN} characters a token"


def _encoding_name(model: str) -> str:
    import tiktoken

    try:
        return tiktoken.encoding_name_for_model(model.removeprefix("openai/"))
    except KeyError:
        return ""


def _is_cached(file: str, sha256: str) -> bool:
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if chosen == "":  # tiktoken's way of saying that nothing is cached
        return False
    path = (default if chosen is None else Path(chosen)) / file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


@cache
def _encoder(name: str) -> Callable[[str], int]:
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))
