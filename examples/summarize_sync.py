"""A program with nothing but ``forward``: it is served from threads and never holds up the event loop."""

from typing import NamedTuple

import dspy


class Summary(NamedTuple):
    """What ``Summarize`` gives."""

    summary: str
    words_saved: int


class Summarize(dspy.Module):
    """Shorten a text to a few sentences and say how many words that saves."""

    def __init__(self) -> None:
        super().__init__()
        self.shorten = dspy.Predict("text, sentences: int -> summary")

    def forward(self, text: str, sentences: int = 2) -> Summary:
        """Summarize ``text`` in about ``sentences`` sentences."""
        summary = self.shorten(text=text, sentences=sentences).summary
        return Summary(summary, max(0, len(text.split()) - len(summary.split())))
