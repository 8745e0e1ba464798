"""`llmrank probe`: what a model or server can do, tried out."""

from __future__ import annotations

import llmrank.cli.options as o
import llmrank.cli.screen as screen


def probe(model: o.Model = None, base_url: o.BaseUrl = None, as_json: o.Json = False) -> None:
    """Try what a model can do, and say what each family of methods will use.

    Sends about thirty requests of a few tokens each.
    """
    from llmrank.api.probing import probe as try_out

    found = try_out(model, base_url)
    if as_json:
        screen.show(found)
        return
    screen.table(
        ["", ""], [[name.replace("_", " "), _told(value)] for name, value in found.items()]
    )


def _told(value: object) -> str:
    if isinstance(value, dict) and "works" in value:
        answer = "yes" if value["works"] else "no"
        return f"{answer} ({value['note']})" if value["note"] else answer
    if isinstance(value, dict):
        shares = ", ".join(f"P({name}) = {share:.4f}" for name, share in value.items())
        return f"{shares}; together {sum(value.values()):.4f}" if value else "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if value is None or value == "":
        return "not told"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
