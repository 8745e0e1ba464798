"""`llmrank probe`: what a model or server can do, tried out."""

from __future__ import annotations

import llmrank.cli.options as o
import llmrank.cli.screen as screen


def probe(model: o.Model = None, base_url: o.BaseUrl = None, as_json: o.Json = False) -> None:
    """Try what a model can do, and say what each family of methods will use.

    Sends about thirty requests of a few tokens each, to each of several servers.
    """
    from llmrank.api.probing import differences, probe_each

    found = probe_each(model, base_url)
    differ = differences(found)
    if as_json:
        screen.show(found[0] if len(found) == 1 else {"servers": found, "differ": differ})
        return
    for one in found:
        title = str(one.get("url", one.get("model"))) if len(found) > 1 else ""
        rows = [[name.replace("_", " "), _told(value)] for name, value in one.items()]
        screen.table(["", ""], rows, title=title)
    if differ:
        rows = [[name.replace("_", " "), "; ".join(told)] for name, told in differ.items()]
        screen.table(["", ""], rows, title="where the servers differ")


def _told(value: object) -> str:
    if isinstance(value, dict) and "works" in value:
        answer = "yes" if value["works"] else "no" if value["settled"] else "open"
        return f"{answer} ({value['note']})" if value["note"] else answer
    if isinstance(value, dict):
        shares = ", ".join(f"P({name}) = {share:.4f}" for name, share in value.items())
        return f"{shares}; together {sum(value.values()):.4f}" if value else "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if value is None or value == "":
        return "not told"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
