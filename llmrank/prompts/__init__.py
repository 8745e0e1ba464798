"""Prompts decide how to say it: templates, rendering an ask into a request, reading the reply."""

from llmrank.prompts.passages import Truncation
from llmrank.prompts.render import PromptSet, example
from llmrank.prompts.replies import read_order
from llmrank.prompts.template import Template, folder, load, names, path_of

__all__ = [
    "PromptSet",
    "Template",
    "Truncation",
    "example",
    "folder",
    "load",
    "names",
    "path_of",
    "read_order",
]
