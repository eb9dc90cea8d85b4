"""A batch job against served programs, for ``ray job submit``.

    ray job submit --working-dir . -- python -m examples.job

Every ticket goes through the same router, cache and limits as HTTP traffic. The job ends with status 1 when a ticket
could not be triaged, so that Ray reports it as failed.
"""

import asyncio
import collections
import sys

import dspy

import serve_app
from serve_app.errors import SwitchyardError

TICKETS = (
    "I was charged twice for March and want one payment back.",
    "The export button does nothing in Firefox.",
    "Please let me change the e-mail address of my account.",
    "A dark theme would be easier on my eyes.",
    "Do you have an office in Lisbon?",
    "The app closes when I open a file of more than 2 GB.",
    "My colleague left; how do I remove his access today?",
    "The invoice shows the wrong tax number.",
)
MAX_IN_FLIGHT = 4


async def triage_all(tickets: tuple[str, ...]) -> int:
    """Triage ``tickets``, a few at a time, and print the result; the number that failed is returned."""
    client = serve_app.connect()
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def triage(ticket: str) -> dspy.Prediction:
        async with slots:
            return await client.apredict("triage", ticket=ticket)

    results = await asyncio.gather(*(triage(ticket) for ticket in tickets), return_exceptions=True)
    categories: collections.Counter[str] = collections.Counter()
    failed = 0
    for ticket, result in zip(tickets, results, strict=True):
        if isinstance(result, SwitchyardError):
            failed += 1
            print(f"failed    {result.code}: {ticket}")
        elif isinstance(result, BaseException):
            raise result
        else:
            categories[result.category] += 1
            print(f"{result.category:<16}priority {result.priority}  {ticket}")
    print(f"{len(tickets) - failed} of {len(tickets)} triaged: {dict(categories)}")
    return failed


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(triage_all(TICKETS)) else 0)
