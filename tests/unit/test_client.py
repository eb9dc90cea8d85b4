"""The Python client: what it sends, what it gives back, what it raises."""

import pytest
from ray.exceptions import RayTaskError

from serve_app.client import Client
from serve_app.errors import InvalidInputs, SwitchyardError

REPLY = {"outputs": {"answer": "fine"}, "meta": {"model": "large"}}


class FakeHandle:
    """Remembers the call; answers or raises."""

    def __init__(self, reply=REPLY) -> None:
        self.predict = self
        self.sent: tuple = ()
        self._reply = reply

    def remote(self, *sent):
        self.sent = sent
        return self

    def result(self):
        if isinstance(self._reply, Exception):
            raise self._reply
        return self._reply

    def __await__(self):
        yield from ()
        return self.result()


def test_a_prediction_has_the_outputs_and_the_meta() -> None:
    handle = FakeHandle()
    answer = Client(handle).with_options(model="large").with_options(deadline_s=2).predict("ask", question="why?")
    assert (answer.answer, answer.meta) == ("fine", {"model": "large"})
    program, inputs, options, request_id = handle.sent
    assert (program, inputs, options) == ("ask", {"question": "why?"}, {"model": "large", "deadline_s": 2})
    assert request_id


def test_an_input_may_be_called_program_or_options() -> None:
    handle = FakeHandle()
    Client(handle).predict("ask", program="x", options="y")
    assert handle.sent[1] == {"program": "x", "options": "y"}


async def test_apredict_is_the_same_for_asynchronous_callers() -> None:
    assert (await Client(FakeHandle()).apredict("ask", question="why?")).answer == "fine"


async def test_predict_inside_a_loop_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="apredict"):
        Client(FakeHandle()).predict("ask", question="why?")


def test_what_was_raised_in_the_replica_is_raised_here() -> None:
    wrapped = RayTaskError("predict", "traceback", InvalidInputs("inputs.question: missing"))
    with pytest.raises(InvalidInputs, match=r"inputs\.question"):
        Client(FakeHandle(wrapped.as_instanceof_cause())).predict("ask")


def test_what_is_none_of_ours_is_still_one_of_ours() -> None:
    wrapped = RayTaskError("predict", "traceback", KeyError("secret"))
    with pytest.raises(SwitchyardError) as raised:
        Client(FakeHandle(wrapped)).predict("ask")
    assert "secret" not in str(raised.value)
