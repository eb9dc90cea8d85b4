"""Ask a served program from Python.

    python examples/call.py "My invoice is wrong"

Works in any process of the Ray cluster that serves the programs: a script, a notebook, another Serve application.
"""

import sys

import serve_app


def main() -> None:
    """Triage the ticket on the command line and print what came back."""
    ticket = " ".join(sys.argv[1:]) or "I was charged twice this month."
    client = serve_app.connect()
    answer = client.predict("triage", ticket=ticket)
    print(f"{answer.category}, priority {answer.priority}: {answer.summary}")
    print(answer.meta)


if __name__ == "__main__":
    main()
