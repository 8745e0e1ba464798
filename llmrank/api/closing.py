"""Letting go of connections and files, also where nobody closes them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Lifeline:
    """Calls `release` once: on `close`, or when the owner is forgotten or the program ends.

    `release` must not refer to the owner, as that would keep it alive.
    """

    def __init__(self, owner: object, release: Callable[[], None]) -> None:
        self._release = release
        self._finalizer = weakref.finalize(owner, _aside, release)

    @property
    def closed(self) -> bool:
        """Whether `release` has been called."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Release now; a second time does nothing."""
        if self._finalizer.detach():
            self._release()


class Closing:
    """What is closed at the end of a `with` block."""

    def close(self) -> None:
        """Let go; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _aside(release: Callable[[], None]) -> None:
    # Objects are forgotten in any thread, also in the one whose event loop `release` waits for.
    # At the program's end, when the main thread counts as ended, no thread may be started.
    if threading.main_thread().is_alive():
        threading.Thread(target=release, name="llmrank-close").start()
    else:
        release()
