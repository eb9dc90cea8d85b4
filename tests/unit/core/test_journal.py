import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.journal import MAX_BYTES, MAX_STEPS, Ask, Journal, fingerprint
from serve_app.messages import Step, StepKind

LM, TOOL = StepKind.LM, StepKind.TOOL


def step(name, occurrence=0, kind=LM, reply="r"):
    return Step(kind, name, occurrence, reply)


def never(reply):
    return False


def test_a_fingerprint_is_the_same_everywhere_and_different_for_each_question():
    assert fingerprint(b"why?") == fingerprint(b"why?") == "f5b2b98bf44b60881a86499d98591d79"
    assert fingerprint(b"why?") != fingerprint(b"why")


def test_a_recorded_answer_is_found_by_the_next_attempt():
    first = Journal()
    first.record(first.ask(LM, "a"), "answer")
    second = Journal(first.finished())
    assert second.reply_to(second.ask(LM, "a")) == "answer"
    assert second.reply_to(second.ask(LM, "b")) is None


def test_what_is_asked_again_gets_the_answers_in_the_order_of_asking_not_of_answering():
    first = Journal()
    early, late = first.ask(LM, "a"), first.ask(LM, "a")
    first.record(late, "second")
    first.record(early, "first")
    second = Journal(first.finished())
    assert [second.reply_to(second.ask(LM, "a")) for _ in range(3)] == ["first", "second", None]


def test_a_question_that_failed_beside_another_of_its_kind_leaves_the_others_place():
    first = Journal()
    first.ask(LM, "a")
    first.record(first.ask(LM, "a"), "second")
    second = Journal(first.finished())
    assert [second.reply_to(second.ask(LM, "a")) for _ in range(2)] == [None, "second"]


def test_a_tool_and_a_model_never_take_each_others_answers():
    journal = Journal([step("a", kind=TOOL)])
    assert journal.reply_to(journal.ask(LM, "a")) is None
    assert journal.reply_to(journal.ask(TOOL, "a")) == "r"


def test_only_lm_steps_count_as_resumed():
    journal = Journal([step("a"), step("b", kind=TOOL)])
    for kind, name in ((LM, "a"), (TOOL, "b")):
        journal.resume(journal.ask(kind, name))
    assert journal.resumed == 1


def test_steps_of_earlier_attempts_stay_before_new_ones():
    journal = Journal([step("a"), step("b")])
    journal.record(journal.ask(LM, "c"), "new")
    assert [kept.fingerprint for kept in journal.finished()] == ["a", "b", "c"]


def test_a_new_answer_takes_the_place_of_an_unreadable_one():
    journal = Journal([step("a", reply="unreadable")])
    journal.record(journal.ask(LM, "a"), "good")
    assert journal.finished() == (step("a", reply="good"),)


def test_an_answer_that_cannot_be_written_down_is_not_kept():
    journal = Journal()
    journal.record(journal.ask(TOOL, "a"), None)
    assert journal.finished() == ()


# ── blame ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_latest_answer_is_forgotten_and_the_tool_after_it_kept():
    journal = Journal()
    for kind, name in ((LM, "a"), (LM, "b"), (TOOL, "t")):
        journal.record(journal.ask(kind, name), name)
    journal.blame(never)
    assert [kept.fingerprint for kept in journal.finished()] == ["a", "t"]


def test_an_answer_that_was_taken_over_is_forgotten_as_well():
    journal = Journal([step("a"), step("b")])
    journal.resume(journal.ask(LM, "b"))
    journal.blame(never)
    assert journal.finished() == (step("a"),)


def test_the_named_answer_is_forgotten_with_the_latest():
    journal = Journal()
    for name in "abc":
        journal.record(journal.ask(LM, name), name)
    journal.blame(lambda reply: reply == "a")
    assert [kept.fingerprint for kept in journal.finished()] == ["b"]


def test_a_latest_answer_that_was_too_large_to_keep_costs_no_other_step():
    journal = Journal([step("a")], max_bytes=20)
    journal.record(journal.ask(LM, "b"), "x" * 100)
    journal.blame(never)
    assert journal.finished() == (step("a"),)


def test_without_an_answer_there_is_nothing_to_blame():
    journal = Journal([step("a")])
    journal.blame(never)
    assert journal.finished() == (step("a"),)


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_steps_are_kept_when_there_are_too_many():
    journal = Journal()
    for number in range(MAX_STEPS + 5):
        journal.record(journal.ask(LM, str(number)), "r")
    assert [kept.fingerprint for kept in journal.finished()] == [str(number) for number in range(MAX_STEPS)]


def test_a_step_that_does_not_fit_is_left_out_and_a_smaller_one_after_it_kept():
    journal = Journal(max_bytes=10)
    for name, reply in (("a", "12345"), ("b", "123456789"), ("c", "123")):
        journal.record(journal.ask(LM, name), reply)
    assert [kept.fingerprint for kept in journal.finished()] == ["a", "c"]


def test_room_is_given_back_when_a_step_is_forgotten():
    journal = Journal(max_bytes=10)
    journal.record(journal.ask(LM, "a"), "x" * 9)
    journal.blame(never)
    journal.record(journal.ask(LM, "b"), "y" * 9)
    assert journal.finished() == (step("b", reply="y" * 9),)


def test_bytes_are_counted_not_characters():
    journal = Journal(max_bytes=10)
    journal.record(journal.ask(LM, "a"), "ä" * 5)
    assert journal.finished() == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=30), st.booleans()), max_size=30))
def test_a_journal_stays_in_its_bounds_whatever_is_recorded_and_blamed(actions):
    journal = Journal(max_steps=5, max_bytes=60)
    for name, reply, is_blamed in actions:
        journal.record(journal.ask(LM, name), reply)
        if is_blamed:
            journal.blame(never)
    kept = journal.finished()
    assert len(kept) <= 5
    assert sum(len(one.fingerprint) + len(one.reply.encode()) for one in kept) <= 60


@given(st.lists(st.tuples(st.sampled_from([LM, TOOL]), st.sampled_from("abc")), max_size=20), st.data())
def test_the_same_questions_in_any_mixture_find_the_same_answers(questions, data):
    first = Journal()
    asks = [first.ask(*question) for question in questions]
    for ask in data.draw(st.permutations(asks)):
        first.record(ask, str(ask))
    # Another interleaving of the branches: the order among equal questions is what stays.
    second = Journal(first.finished())
    for ask in (second.ask(*question) for question in data.draw(st.permutations(questions))):
        assert second.reply_to(ask) == str(ask)


def test_the_documented_bounds():
    assert (MAX_STEPS, MAX_BYTES) == (64, 1_048_576)
    assert Ask(LM, "a", 0) == Journal().ask(LM, "a")


@pytest.mark.parametrize("steps", [(), (step("a"), step("a", 1), step("t", kind=TOOL))])
def test_what_was_inherited_is_handed_on_unchanged(steps):
    assert Journal(steps).finished() == steps
