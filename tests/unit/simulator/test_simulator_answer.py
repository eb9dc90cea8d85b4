import csv
import json

import dspy
import pytest

from serve_app.errors import ConfigError
from serve_app.simulator.answer import Answerer
from serve_app.simulator.profile import ModelProfile, Profile, Replay
from serve_app.simulator.provider import Provider
from serve_app.simulator.replay import Recordings

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
QUESTION = "A shop has 16 eggs & sells 9.\nHow many are left?"
WORDS = "She starts with 16.\n  16 - 9 = <<16-9=7>>7 &amp; no more.\n\n#### 7"


def recordings(tmp_path, rows, answer_field=None, columns=("prompt", "said")):
    path = tmp_path / "answers.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return Recordings.load(Replay(csv=path, answer_column="said", answer_field=answer_field))


def request(signature, adapter=ADAPTERS[0], **inputs):
    return {"messages": adapter.format(dspy.ensure_signature(signature), [], inputs)}


def fill(answerer, signature, adapter=ADAPTERS[0], **inputs):
    text = answerer.answer(request(signature, adapter, **inputs)).text
    return adapter.parse(dspy.ensure_signature(signature), text)


def test_quality_is_the_share_of_right_answers():
    right, poor = Answerer("a", 1.0), Answerer("b", 0.7)
    signature = dspy.Signature("text -> label: bool")
    same = sum(
        fill(right, signature, text=f"Text {n}.") == fill(poor, signature, text=f"Text {n}.") for n in range(600)
    )
    assert 0.64 < same / 600 < 0.76


def test_two_models_are_wrong_about_different_prompts_but_each_about_the_same_every_time():
    signature = dspy.Signature("text -> label: bool")
    a, again, b = (
        [fill(Answerer(name, 0.5), signature, text=f"Text {n}.")["label"] for n in range(60)]
        for name in ("a", "a", "b")
    )
    assert a == again != b


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_recorded_words_are_served_exactly_in_the_last_field(tmp_path, adapter):
    answerer = Answerer("m", 1.0, recordings(tmp_path, [(QUESTION, WORDS)]))
    values = fill(answerer, "question -> reasoning, answer", adapter, question=QUESTION)
    assert values["answer"] == WORDS
    assert values["reasoning"]


def test_recorded_words_go_to_the_field_that_the_profile_names(tmp_path):
    answerer = Answerer("m", 1.0, recordings(tmp_path, [(QUESTION, WORDS)], answer_field="solution"))
    assert fill(answerer, "question -> solution, note", question=QUESTION)["solution"] == WORDS


def test_a_field_of_another_type_gets_its_value_from_the_recorded_words(tmp_path):
    answerer = Answerer("m", 1.0, recordings(tmp_path, [(QUESTION, WORDS)]))
    assert fill(answerer, "question -> answer: int", question=QUESTION) == {"answer": 7}
    assert fill(answerer, "question -> answer: float", question=QUESTION) == {"answer": 7.0}


def test_a_recorded_prompt_is_found_as_a_paragraph_and_outside_of_dspy(tmp_path):
    answerer = Answerer("m", 1.0, recordings(tmp_path, [(QUESTION, WORDS)]))
    assert fill(answerer, "text -> answer", text=f"Solve this.\n\n{QUESTION}\n\nThank you.")["answer"] == WORDS
    assert answerer.answer({"messages": [{"role": "user", "content": QUESTION}]}).text == WORDS


def test_an_unrecorded_prompt_is_answered_as_ever(tmp_path):
    answerer = Answerer("m", 1.0, recordings(tmp_path, [(QUESTION, WORDS)]))
    assert fill(answerer, "question -> answer", question="Another one.") == {"answer": "Another one."}


def test_of_a_prompt_recorded_twice_the_first_answer_counts(tmp_path):
    assert recordings(tmp_path, [("p", "first"), ("p", "second")]).find(["p"]) == "first"


def test_a_missing_column_or_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no column 'said'; it has prompt, words"):
        recordings(tmp_path, [], columns=("prompt", "words"))
    replay = Replay(csv=tmp_path / "none.csv", answer_column="a")
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read: No such file"):
        Provider(Profile(models={"m": ModelProfile(replay=replay)}))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 20])
def test_a_list_is_answered_item_by_item(adapter, count):
    texts = [f'Text "{n}" of many\n\n[[ ## labels ## ]] & <item>.' for n in range(count)]
    signature = "note, texts: list[str], authors: list[str] | None -> labels: list[bool], gists: list[str] | None, tone"
    values = fill(Answerer("m", 1.0), signature, adapter, note="[1, 2]", texts=texts, authors=None)
    assert [len(values["labels"]), len(values["gists"] or [])] == [count, count]
    one_by_one = [fill(Answerer("m", 1.0), "texts: list[str] -> labels: list[bool]", texts=[text]) for text in texts]
    assert values["labels"] == [each["labels"][0] for each in one_by_one]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_lists_of_one_length_are_answered_place_by_place_and_others_as_ever(adapter):
    signature = "texts: list[str], authors: list[str] -> labels: list[str], seen: set[str], pair: tuple[str, int]"
    values = fill(Answerer("m", 1.0), signature, adapter, texts=["Text"] * 9, authors=["Anna"] * 9)
    assert len(values["labels"]) == 9
    assert [len(values["pair"]), len(values["seen"]) <= 3] == [2, True]
    values = fill(Answerer("m", 1.0), signature, adapter, texts=["Text"] * 9, authors=["Anna"] * 8)
    assert len(values["labels"]) <= 3
    assert len(fill(Answerer("m", 1.0), "text -> labels: list[str]", adapter, text='["a"]' * 9)["labels"]) <= 3


def test_a_follow_up_turn_is_answered_from_the_last_user_message():
    messages = [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "Two."}]},
    ]
    assert Answerer("m", 1.0).answer({"messages": messages}).text == "You asked about this: Two."


def test_a_required_and_a_named_tool_are_called():
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("one", "two")]
    base = {"messages": [{"role": "user", "content": "Go."}], "tools": tools}
    named = {"type": "function", "function": {"name": "two"}}
    assert Answerer("m", 1.0).answer({**base, "tool_choice": named}).tool == "two"
    answer = Answerer("m", 1.0).answer({**base, "tool_choice": "required"})
    assert (answer.tool, json.loads(answer.arguments)) == ("one", {})
