"""Synthetic training data as plans: queries written for documents, and the filters they must pass.

Every example says where it came from: document, prompt, model, parameters, tokens, and the verdict
of every filter with the number it was reached by.
"""

from llmrank.synth.filters import Verdict, complete, length, round_trip
from llmrank.synth.queries import Demonstration, Draft, write_queries

__all__ = ["Demonstration", "Draft", "Verdict", "complete", "length", "round_trip", "write_queries"]
