"""Synthetic training data as plans: documents chosen, queries written, filtered and labelled.

Every example says where it came from: documents, prompts, models, parameters and tokens, and the
verdict of every stage with the number it was reached by.
"""

from llmrank.synth.base import (
    Calls,
    Example,
    HeldOut,
    Passage,
    Shot,
    Span,
    Stage,
    Step,
    Verdict,
    World,
)
from llmrank.synth.recipe import STEPS, Recipe, parse

__all__ = [
    "STEPS",
    "Calls",
    "Example",
    "HeldOut",
    "Passage",
    "Recipe",
    "Shot",
    "Span",
    "Stage",
    "Step",
    "Verdict",
    "World",
    "parse",
]
