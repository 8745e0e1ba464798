"""Examples as rows for the trainers of others: what to take of an example, and in which shape."""

from llmrank.synth.exports.choice import (
    REMEDIES,
    SCALES,
    WORSE,
    Choice,
    Lack,
    Needs,
    Options,
    Sample,
    Scale,
    Text,
    check,
    choose,
    rivals,
    score_of,
)
from llmrank.synth.exports.formats import FORMATS, Format, Row, find
from llmrank.synth.exports.records import TRAIN, Line, Listed, read

__all__ = [
    "FORMATS",
    "REMEDIES",
    "SCALES",
    "TRAIN",
    "WORSE",
    "Choice",
    "Format",
    "Lack",
    "Line",
    "Listed",
    "Needs",
    "Options",
    "Row",
    "Sample",
    "Scale",
    "Text",
    "check",
    "choose",
    "find",
    "read",
    "rivals",
    "score_of",
]
