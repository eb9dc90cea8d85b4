from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.complexity import IMAGE_TOKENS, estimate, estimate_tokens, resolve
from serve_app.messages import Complexity

PROSE = (
    "The committee met on a grey morning and, after a long discussion of the harbour's finances, agreed that the new "
    "pier would have to wait until the following spring. "
)


@pytest.mark.parametrize(
    ("inputs", "complexity"),
    [
        ({}, Complexity.LOW),
        ({"ticket": ""}, Complexity.LOW),
        ({"ticket": "My invoice shows the wrong address."}, Complexity.LOW),
        ({"question": "What is the capital of France?"}, Complexity.LOW),
        ({"text": PROSE * 9}, Complexity.LOW),  # just under 400 tokens
        ({"text": PROSE * 10}, Complexity.MEDIUM),
        ({"question": "Why was I charged twice?"}, Complexity.MEDIUM),
        ({"question": "Who? When? Where?"}, Complexity.MEDIUM),
        ({"question": "Ann has 3 apples, buys 4 and eats 2. How many are left?"}, Complexity.MEDIUM),
        ({"question": "Solve x = 5 + y"}, Complexity.MEDIUM),
        ({"code": "def f(x):\n    return x"}, Complexity.MEDIUM),
        ({"code": "for (;;) {\n}"}, Complexity.MEDIUM),
        ({"text": PROSE * 60}, Complexity.MEDIUM),  # over 2,000 tokens, and nothing else
        ({"q": "Explain step by step why 2, 3 and 5 are prime."}, Complexity.HIGH),
        ({"q": "Prove it, and compare both proofs:\n```\nx\n```"}, Complexity.HIGH),
        ({"q": "Compare them.", "context": PROSE * 60}, Complexity.HIGH),
        ({"tables": [{"rows": [["why", 1], ["explain", "10 20 30"]]}]}, Complexity.HIGH),
        ({"question": "为什么\uff1f何时\uff1f谁\uff1f"}, Complexity.MEDIUM),
    ],
)
def test_the_rule(inputs: dict[str, object], complexity: Complexity) -> None:
    assert estimate(inputs) is complexity


def test_the_same_word_twice_counts_once() -> None:
    assert estimate({"q": "why why WHY"}) is Complexity.MEDIUM
    assert estimate({"q": "why, and compare"}) is Complexity.MEDIUM


def test_what_a_caller_asks_for_stands_and_auto_is_estimated() -> None:
    assert resolve(Complexity.HIGH, {}) is Complexity.HIGH
    assert resolve(Complexity.LOW, {"q": "Explain step by step why 2, 3 and 5 are prime."}) is Complexity.LOW
    assert resolve(Complexity.AUTO, {"q": "Why?"}) is Complexity.MEDIUM


@pytest.mark.parametrize(
    ("text", "tokens", "tolerance"),
    [
        (PROSE, 34, 0.25),  # tokens as cl100k_base counts them
        ("东京是日本的首都\uff0c也是世界上人口最多的城市之一。", 25, 0.25),
        ("Быстрая лиса прыгает через ленивую собаку.", 23, 0.25),
    ],
)
def test_tokens_are_about_what_a_tokenizer_counts(text: str, tokens: int, tolerance: float) -> None:
    assert estimate_tokens({"t": text}) == pytest.approx(tokens, rel=tolerance)


def test_an_embedded_image_counts_as_one_whatever_its_size() -> None:
    url = "data:image/png;base64," + "iVBORw0KGgo=" * 50_000
    assert IMAGE_TOKENS <= estimate_tokens({"image": {"url": url}}) <= IMAGE_TOKENS + 10
    assert IMAGE_TOKENS <= estimate_tokens({"image": f'<<START>>[{{"url": "{url}"}}]<<END>>'}) <= IMAGE_TOKENS + 20
    assert estimate({"image": url}) is Complexity.MEDIUM  # for its tokens, not for digits in its base64


def test_numbers_and_names_count_too() -> None:
    assert estimate_tokens({"n": 5}) == 2
    assert estimate_tokens({"n": 10**5000}) > 1000
    assert estimate_tokens({"a": None, "b": True, "c": 1.5}) == 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON))
def test_anything_has_an_estimate(inputs: dict[str, object]) -> None:
    assert estimate_tokens(inputs) >= 0
    assert estimate(inputs) in (Complexity.LOW, Complexity.MEDIUM, Complexity.HIGH)


@pytest.mark.parametrize(
    "text",
    ["\n" * 10**6, " " * 10**6, "a " * 500_000, ";" * 10**6, "(" * 10**6, ") " * 500_000, "data:a/" * 150_000,
     "data:a/b;base64," * 60_000, "9" * 10**6, "1," * 500_000, "what " * 200_000, "step" + " " * 10**6, "\ud800" * 10**6],
)  # fmt: skip
def test_a_megabyte_of_anything_takes_no_time(text: str) -> None:
    started = time.process_time()
    estimate({"t": text})
    assert time.process_time() - started < 0.5


def test_nesting_of_any_depth_is_no_error() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert estimate({"d": deep}) is Complexity.LOW
