"""What holds for every test: no network but loopback, no model from a hub."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Two workers that each compute with every core are far slower than with one core each.
    os.environ["OMP_NUM_THREADS"] = "1"
# numpy's threads wait for each other by spinning, which slows all that runs beside them.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Before any test imports the library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLMRANK_BASE_URL", "LLMRANK_MODEL"):
    os.environ.pop(name, None)


# Speed is measured in benchmarks/, never asserted.
settings.register_profile("llmrank", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=15)
settings.load_profile("llmrank")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the real local model share one worker, so that it is loaded once."""
    # The longest of all would otherwise be the last, with one worker left to it.
    items.sort(key=lambda item: "test_docs.py" not in item.nodeid)
    for item in items:
        if item.get_closest_marker("local"):
            item.add_marker(pytest.mark.xdist_group("local"))


def pytest_collection_finish() -> None:
    """What was imported lives to the end: garbage is not looked for in it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guard(self: socket.socket, address: Any) -> Any:  # noqa: ANN401 - as the socket takes it
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise RuntimeError(f"a test wanted to connect to {host}")
        return connect(self, address)

    return guard


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> None:
    """Refuse every connection that leaves this machine."""
    setattr(socket.socket, "connect", _guarded(_connect))  # noqa: B010 - mypy forbids assignment
    setattr(socket.socket, "connect_ex", _guarded(_connect_ex))  # noqa: B010


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real judged collections beside the checkout; the test is skipped where there are none."""
    folder = (Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip("shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def collection() -> Path:
    """The hand-written example collection."""
    return Path(__file__).parents[1] / "examples" / "collection"
