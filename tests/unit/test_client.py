"""The Python client: what it sends, what it gives back, what it raises."""

import asyncio
import math
import pickle
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)

from serve_app.bulk.ray_data import PredictBatches
from serve_app.client import GRACE_S, Client, connect
from serve_app.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidInputs,
    NoRoute,
    Overloaded,
    SwitchyardError,
    UpstreamError,
)
from serve_app.messages import Outcome

REPLY = {"outputs": {"answer": "fine"}, "meta": {"model": "large"}}


class FakeHandle:
    """Remembers the call; answers or raises."""

    app_name = "triage"
    is_initialized = True

    def __init__(self, reply=REPLY) -> None:
        self.predict = self
        self.sent: tuple = ()
        self._reply = reply

    def remote(self, *sent, trace):
        self.sent, self.trace = sent, trace
        return self

    def result(self, timeout_s=None):
        self.timeout_s = timeout_s
        if isinstance(self._reply, Exception):
            raise self._reply
        return self._reply

    def __await__(self):
        yield from ()
        return self.result()


def ask(client: Client, how: str):
    """The answer to a call by ``predict`` or ``apredict``."""
    answer = getattr(client, how)("ask", question="why?")
    return asyncio.run(answer) if how == "apredict" else answer


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


def test_a_call_inside_a_span_takes_its_trace_along() -> None:
    handle = FakeHandle()
    Client(handle).predict("ask", question="why?")
    assert handle.trace == {}
    span = TracerProvider(shutdown_on_exit=False).get_tracer("caller").start_span("work")
    with use_span(span):
        Client(handle).predict("ask", question="why?")
    assert handle.trace["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")


async def test_apredict_is_the_same_for_asynchronous_callers() -> None:
    assert (await Client(FakeHandle()).apredict("ask", question="why?")).answer == "fine"


async def test_predict_inside_a_loop_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="apredict"):
        Client(FakeHandle()).predict("ask", question="why?")


def test_what_was_raised_in_the_replica_is_raised_here() -> None:
    wrapped = RayTaskError("predict", "traceback", InvalidInputs("inputs.question: missing"))
    with pytest.raises(InvalidInputs, match=r"inputs\.question"):
        Client(FakeHandle(wrapped.as_instanceof_cause())).predict("ask")


@pytest.mark.parametrize("how", ["predict", "apredict"])
def test_what_was_raised_before_the_call_had_an_id_gets_the_callers(how) -> None:
    wrapped = RayTaskError("predict", "traceback", InvalidInputs("inputs.question: missing", 2.0))
    handle = FakeHandle(wrapped.as_instanceof_cause())
    with pytest.raises(InvalidInputs) as told:
        ask(Client(handle), how)
    assert (told.value.request_id, told.value.retry_after_s) == (handle.sent[3], 2.0)


@pytest.mark.parametrize("deadline_s", [-30, 0, math.nan, math.inf, 1e300, "soon"])
def test_a_deadline_that_is_no_time_is_left_to_the_application_to_refuse(deadline_s) -> None:
    handle = FakeHandle()
    Client(handle).with_options(deadline_s=deadline_s).predict("ask", question="why?")
    assert handle.timeout_s is None


def test_what_is_none_of_ours_is_still_one_of_ours() -> None:
    wrapped = RayTaskError("predict", "traceback", KeyError("secret"))
    with pytest.raises(SwitchyardError) as raised:
        Client(FakeHandle(wrapped)).predict("ask")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("raised", "error", "outcome"),
    [
        (ActorDiedError(), UpstreamError, Outcome.UNREACHABLE),
        (ActorUnavailableError("x", b"\0" * 16), UpstreamError, Outcome.UNREACHABLE),
        (BackPressureError(5, 5), Overloaded, Outcome.REJECTED),
        (RequestCancelledError("r"), ClientClosed, Outcome.CANCELLED),
    ],
)
@pytest.mark.parametrize("how", ["predict", "apredict"])
def test_what_ray_itself_raises_is_one_of_ours(how, raised, error, outcome) -> None:
    with pytest.raises(error) as told:
        ask(Client(FakeHandle(raised)), how)
    assert (type(told.value), told.value.outcome) == (error, outcome)
    assert told.value.request_id


def test_a_deployment_that_is_not_there_is_no_route() -> None:
    unavailable = DeploymentUnavailableError(SimpleNamespace(name="Ingress"))
    with pytest.raises(NoRoute):
        Client(FakeHandle(unavailable)).predict("ask")


def test_what_was_raised_in_the_replica_keeps_its_request_id() -> None:
    wrapped = RayTaskError("predict", "traceback", NoRoute("down", 2.0, (), "r1"))
    with pytest.raises(NoRoute) as told:
        Client(FakeHandle(wrapped)).predict("ask")
    assert (told.value.request_id, told.value.retry_after_s) == ("r1", 2.0)


async def test_a_caller_that_is_cancelled_is_cancelled_and_nothing_else() -> None:
    task = asyncio.create_task(Client(Silent()).apredict("ask"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_options_are_each_clients_own() -> None:
    handle = FakeHandle()
    plain = Client(handle)
    plain.with_options(model="large")
    plain.predict("ask", question="why?")
    assert handle.sent[2] == {}


def test_an_output_called_meta_gives_way_to_the_meta() -> None:
    reply = {"outputs": {"answer": "x", "meta": "mine"}, "meta": {"model": "large"}}
    assert Client(FakeHandle(reply)).predict("ask").meta == {"model": "large"}


def test_without_a_cluster_connecting_is_no_route(monkeypatch) -> None:
    def refuse(**options):
        assert options["address"] == "auto"
        raise ConnectionError("nobody there")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(NoRoute, match="nobody there"):
        connect()


@pytest.mark.parametrize(
    ("running", "says"), [(("simulator", "desk"), "there is 'desk', 'simulator'"), ((), "there is none")]
)
def test_an_application_that_does_not_run_is_no_route_and_those_that_do_are_named(running, says, monkeypatch) -> None:
    def refuse(name):
        raise RayServeException(f"Application '{name}' does not exist.")

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.serve.get_app_handle", refuse)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=dict.fromkeys(running)))
    with pytest.raises(NoRoute, match=f"'other' does not exist; {says}$"):
        connect("other")


def test_a_client_passed_to_another_process_connects_there_by_the_applications_name(monkeypatch) -> None:
    there = FakeHandle()
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.serve.get_app_handle", {"triage": there}.__getitem__)
    client = pickle.loads(pickle.dumps(Client(FakeHandle()).with_options(model="large")))
    assert client.predict("ask", question="why?").answer == "fine"
    assert there.sent[2] == {"model": "large"}


class Silent(FakeHandle):
    """Never answers."""

    is_cancelled = False

    def result(self, timeout_s=None):
        assert timeout_s is not None
        raise TimeoutError

    def __await__(self):
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.mark.parametrize("how", ["predict", "apredict"])
def test_an_application_that_says_nothing_is_left_at_the_deadline(how, monkeypatch) -> None:
    monkeypatch.setattr("serve_app.client.GRACE_S", 0.0)
    handle = Silent()
    with pytest.raises(DeadlineExceeded):
        ask(Client(handle).with_options(deadline_s=0.02), how)
    assert handle.is_cancelled


def test_without_a_deadline_of_its_own_a_call_waits_for_the_applications() -> None:
    handle = FakeHandle()
    Client(handle).predict("ask")
    assert handle.timeout_s is None
    Client(handle).with_options(deadline_s=2).predict("ask")
    assert handle.timeout_s == 2 + GRACE_S


class Picky(FakeHandle):
    """Refuses each question the first time when ``is_busy``; one question it always refuses to understand."""

    def __init__(self, is_busy: bool = False) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.options: list[dict] = []
        self._is_busy = is_busy

    def remote(self, program, inputs, options, request_id, trace):
        self.asked.append(inputs["question"])
        self.options.append(options)
        reply = {"outputs": {"answer": inputs["question"].upper()}, "meta": {}}
        if inputs["question"] == "bad":
            reply = InvalidInputs("inputs.question: bad")
        elif self._is_busy and self.asked.count(inputs["question"]) == 1:
            reply = Overloaded("later", 0.0)
        return FakeHandle(RayTaskError("predict", "traceback", reply) if isinstance(reply, Exception) else reply)


ROWS = [{"question": question} for question in ("a", "bad", "b")]


def test_many_rows_are_answered_each_with_its_index_and_a_bad_one_fails_alone() -> None:
    handle = Picky()
    found = {predicted.index: predicted for predicted in Client(handle).predict_many("ask", ROWS, concurrency=2)}
    assert [found[0].prediction.answer, found[2].prediction.answer] == ["A", "B"]
    assert (found[1].prediction, type(found[1].error), found[1].inputs) == (None, InvalidInputs, {"question": "bad"})
    assert handle.options == [{"priority": "sheddable"}] * 3


async def test_refused_rows_are_asked_again_and_own_options_go_before() -> None:
    handle = Picky(is_busy=True)
    client = Client(handle).with_options(priority="default")
    found = [predicted async for predicted in client.apredict_many("ask", ROWS)]
    assert sorted(predicted.index for predicted in found if predicted.error is None) == [0, 2]
    assert sorted(handle.asked) == ["a", "a", "b", "b", "bad"]
    assert handle.options[0] == {"priority": "default"}


async def test_many_rows_work_inside_a_running_loop() -> None:
    assert len(list(Client(Picky()).predict_many("ask", ROWS))) == 3


@pytest.mark.parametrize("concurrency", [0, -3])
@pytest.mark.parametrize("how", ["predict_many", "apredict_many"])
def test_many_rows_with_nothing_in_work_are_refused_at_once(how, concurrency) -> None:
    with pytest.raises(ValueError, match=f"concurrency must be at least 1, not {concurrency}"):
        getattr(Client(Picky()), how)("ask", ROWS, concurrency=concurrency)


def test_batches_with_nothing_in_work_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="concurrency must be at least 1, not 0"):
        PredictBatches("ask", ["question"], ["answer"], concurrency=0, client=Client(Picky()))


@pytest.mark.parametrize(
    ("row", "says"), [(["why?"], "mapping of inputs by name, not list"), ({5: "why?"}, "must be a string, not int")]
)
def test_a_row_that_cannot_be_inputs_fails_alone(row, says) -> None:
    found = {predicted.index: predicted for predicted in Client(Picky()).predict_many("ask", [row, ROWS[0]])}
    assert found[1].prediction.answer == "A"
    assert (type(found[0].error), found[0].inputs) == (InvalidInputs, row)
    assert says in str(found[0].error)


class Hanging(Picky):
    """Answers the first question and no other."""

    def remote(self, program, inputs, options, request_id, trace):
        answer = super().remote(program, inputs, options, request_id, trace)
        return answer if len(self.asked) == 1 else Silent()


@pytest.mark.parametrize("how", ["break", "close"])
def test_who_leaves_the_loop_hears_nothing_of_what_was_in_work(how, caplog) -> None:
    answers = Client(Hanging()).predict_many("ask", ROWS, concurrency=2)
    for _ in answers:
        if how == "break":
            break
        answers.close()
    del answers
    assert caplog.messages == []
    assert not [thread for thread in threading.enumerate() if thread.name == "switchyard-bulk"]


def test_who_stops_to_iterate_asks_no_more() -> None:
    handle = Picky()
    for _ in Client(handle).predict_many("ask", ({"question": str(number)} for number in range(1000)), concurrency=2):
        break
    assert len(handle.asked) < 10


@pytest.mark.parametrize("column", [list, np.array])
def test_a_batch_of_ray_data_gets_the_outputs_as_columns_and_loses_no_row(column) -> None:
    predict = PredictBatches("ask", ["question"], ["answer"], client=Client(Picky()))
    batch = {"id": column([7, 8, 9]), "question": column(["a", "bad", "b"])}
    made = predict(batch)
    assert made["answer"] == ["A", None, "B"]
    assert made["error"] == [None, "invalid_inputs: inputs.question: bad", None]
    assert made["id"] is batch["id"]
    assert predict({name: values[:0] for name, values in batch.items()})["answer"] == []


def test_a_batch_without_the_column_says_so() -> None:
    with pytest.raises(KeyError, match="question"):
        PredictBatches("ask", ["question"], ["answer"], client=Client(Picky()))({"text": ["a"]})
