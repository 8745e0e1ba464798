"""What every backend needs, each as a wrapper around one.

From the outside in: `Cached` (the journal), `Capped` (what an invocation may cost), `Retrying`,
`Limited` (what the server takes at once and in a minute), `Hedged` (where some answers hang),
`Metered`. `Routed` and `Pool` make one backend of several.
"""

from __future__ import annotations

from llmrank.backends.wrappers.base import Wrapper
from llmrank.backends.wrappers.cache import Cached, Memory, about
from llmrank.backends.wrappers.caps import Capped, Caps, expected_usage
from llmrank.backends.wrappers.hedge import Hedged
from llmrank.backends.wrappers.limits import Limited
from llmrank.backends.wrappers.meter import Meter, Metered
from llmrank.backends.wrappers.minute import Minute
from llmrank.backends.wrappers.pool import ModelPool, Pool
from llmrank.backends.wrappers.retries import Retrying
from llmrank.backends.wrappers.routed import Routed

__all__ = [
    "Cached",
    "Capped",
    "Caps",
    "Hedged",
    "Limited",
    "Memory",
    "Meter",
    "Metered",
    "Minute",
    "ModelPool",
    "Pool",
    "Retrying",
    "Routed",
    "Wrapper",
    "about",
    "expected_usage",
]
