"""A reward for programs of signature ``question -> answer``."""


def echoed(args, pred) -> float:
    """Right when the answer is the question; off the scale for a question about scale."""
    return 85 if args["question"] == "scale" else float(pred.answer == args["question"])
