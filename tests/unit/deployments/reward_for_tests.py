"""A reward for programs of signature ``question -> answer``."""


def echoed(args, pred) -> float | None:
    """Right when the answer is the question; off the scale for a question about scale; else no opinion on "?"."""
    odd = {"scale": 85, "?": None}
    return odd.get(args["question"], float(pred.answer == args["question"]))
