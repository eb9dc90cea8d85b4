"""Sort support tickets: a category, a priority, one sentence, and how sure the model is."""

from typing import Any, Literal

import dspy


class TriageTicket(dspy.Signature):
    """Decide which team takes a support ticket and how soon it must look at it."""

    ticket: str = dspy.InputField(
        desc="what the customer wrote", examples=["Billing question: I was charged twice for March."]
    )
    context: str = dspy.InputField(default="", desc="what is already known of the customer; may be empty")
    category: Literal["billing", "bug", "account", "feature_request", "other"] = dspy.OutputField(
        desc="the team that takes it"
    )
    priority: int = dspy.OutputField(ge=1, le=5, desc="1 can wait for weeks, 5 needs someone now")
    summary: str = dspy.OutputField(desc="the ticket in one sentence")
    confidence: float = dspy.OutputField(ge=0, le=1, desc="how sure you are of the category, 0 to 1")


class Triage(dspy.Module):
    """Sort a support ticket into a category with a priority and a one-sentence summary."""

    signature = TriageTicket  # declares what the program takes and gives

    def __init__(self) -> None:
        super().__init__()
        self.decide = dspy.Predict(TriageTicket)

    def forward(self, ticket: str, context: str = "") -> dspy.Prediction:
        """Sort one ticket, from a script."""
        return self.decide(ticket=ticket, context=context)

    async def aforward(self, ticket: str, context: str = "") -> dspy.Prediction:
        """Sort one ticket, while serving."""
        return await self.decide.acall(ticket=ticket, context=context)


def is_grounded(args: dict[str, Any], pred: dspy.Prediction) -> float | None:
    """A reward that needs no labels: the share of the summary's words that stand in the ticket or its context."""
    words = str(pred.get("summary", "")).lower().split()
    if not words:  # at level ``minimal`` there is no summary, and so no opinion
        return None
    known = set(f"{args['ticket']} {args['context']}".lower().split())
    return sum(word in known for word in words) / len(words)
