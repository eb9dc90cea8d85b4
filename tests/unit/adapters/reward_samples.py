"""Reward functions as people write them, good and bad."""

import asyncio
import threading

import dspy

release = threading.Event()
seen: list[tuple[dict, dspy.Prediction]] = []


def exact(args, pred) -> bool:
    seen.append((args, pred))
    return pred.answer == args["question"]


async def gentle(args, pred) -> float:
    await asyncio.sleep(0)
    return 0.25


def hangs(args, pred) -> float:
    release.wait()
    return 1.0


async def sleeps(args, pred) -> float:
    await asyncio.Event().wait()
    return 1.0


def raises(args, pred) -> float:
    raise KeyError(pred.answer)


def leaves(args, pred) -> float:
    raise SystemExit


def from_fields(args, pred):
    return args["question"]


async def cancels(args, pred) -> float:
    raise asyncio.CancelledError


async def times_out(args, pred) -> float:
    raise TimeoutError


def one_argument(args) -> float:
    return 1.0


class Judge:
    async def __call__(self, args, pred) -> dspy.Prediction:
        return dspy.Prediction(score=0.5, feedback="fair")


judge = Judge()
not_a_function = 3
