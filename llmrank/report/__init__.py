"""What a set of synthetic training examples is like, as one page of HTML."""

from llmrank.report.page import report

__all__ = ["report"]
