"""Solve a word problem: the answer is free text that ends in the number, as GSM8K writes it."""

import dspy


class MathWordProblem(dspy.Signature):
    """Solve the problem step by step. End with a line of its own that holds the final number."""

    question: str = dspy.InputField(desc="a word problem with one number as its answer")
    answer: str = dspy.OutputField(desc="the steps, then the final number on the last line")
