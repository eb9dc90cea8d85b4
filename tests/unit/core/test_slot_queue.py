"""Who gets a slot, in which order, and who never does."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from serve_app.core.clock import ManualClock
from serve_app.core.permit import Refusal
from serve_app.core.slot_queue import PATIENCE, Place, SlotQueue
from serve_app.messages import PRIORITIES, Priority

CRITICAL, DEFAULT, SHEDDABLE = PRIORITIES


@pytest.fixture
def clock():
    return ManualClock(1000)


class Calls:
    """Calls that join a queue, by name, and what they were told."""

    def __init__(self, queue: SlotQueue) -> None:
        self.queue = queue
        self.places: dict[str, Place] = {}
        self.started: list[str] = []
        self.dropped: dict[str, str] = {}

    def come(
        self, name: str, priority: Priority = DEFAULT, remaining_s: float = 1e6, program: str = ""
    ) -> Refusal | None:
        def on_turn(refusal: Refusal | None) -> None:
            if refusal:
                self.dropped[name] = refusal.reason
            else:
                self.started.append(name)

        place = self.queue.join(priority, remaining_s, on_turn, program)
        if isinstance(place, Refusal):
            return place
        self.places[name] = place
        return None

    def end(self, name: str, *, served: bool = True) -> None:
        self.places.pop(name).leave(served=served)


def known_service(clock: ManualClock, queue: SlotQueue, seconds: float) -> Calls:
    """Teach the queue a service time, and fill its slots."""
    calls = Calls(queue)
    calls.come("teacher")
    clock.advance(seconds)
    calls.end("teacher")
    for n in range(queue.slots):
        calls.come(f"running{n}")
    return calls


def test_calls_start_at_once_while_there_are_slots(clock) -> None:
    calls = Calls(SlotQueue(2, 10, clock=clock))
    for name in "abc":
        calls.come(name)
    assert calls.started == ["a", "b"]
    assert (calls.queue.running, calls.queue.waiting) == (2, 1)


def test_a_slot_that_comes_free_goes_to_the_best_class_in_the_order_of_arrival(clock) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    calls.come("running")
    for name, priority in [("s1", SHEDDABLE), ("d1", DEFAULT), ("c1", CRITICAL), ("d2", DEFAULT), ("c2", CRITICAL)]:
        calls.come(name, priority)
    for name in ("running", "c1", "c2", "d1", "d2"):
        calls.end(name)
    assert calls.started == ["running", "c1", "c2", "d1", "d2", "s1"]


@pytest.mark.parametrize("priority", [DEFAULT, SHEDDABLE])
def test_a_class_that_was_passed_over_long_enough_goes_next_once(clock, priority) -> None:
    calls = Calls(SlotQueue(1, 1000, clock=clock))
    calls.come("c0", CRITICAL)
    calls.come("patient", priority)
    calls.come("patient too", priority)
    for n in range(100):
        calls.come(f"c{n + 1}", CRITICAL)
        calls.end(calls.started[-1])
    turns = [at for at, name in enumerate(calls.started) if name.startswith("patient")]
    assert turns == [PATIENCE[priority] + 1, 2 * PATIENCE[priority] + 2]


def test_a_call_whose_deadline_passed_while_it_waited_is_dropped_and_takes_no_slot(clock) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    calls.come("running")
    calls.come("late", remaining_s=1)
    calls.come("patient")
    clock.advance(1)
    calls.end("running")
    assert calls.dropped == {"late": "deadline"}
    assert calls.started == ["running", "patient"]
    calls.end("late")
    assert calls.queue.running == 1


def test_a_call_that_waited_until_its_answer_would_come_too_late_is_dropped(clock) -> None:
    calls = known_service(clock, SlotQueue(1, 10, clock=clock), seconds=2)
    calls.come("late", remaining_s=5)
    calls.come("patient", remaining_s=60)
    clock.advance(3.5)
    calls.end("running0", served=False)
    assert calls.dropped == {"late": "deadline"}
    assert calls.started[-1] == "patient"


def test_a_call_that_finds_a_free_slot_starts_however_little_time_it_has(clock) -> None:
    calls = known_service(clock, SlotQueue(2, 10, clock=clock), seconds=2)
    calls.end("running0", served=False)
    assert calls.come("hurried", remaining_s=0.1) is None
    assert calls.started[-1] == "hurried"


def test_a_call_that_leaves_while_it_waits_is_never_started(clock) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    for name in "abc":
        calls.come(name)
    calls.end("b", served=False)
    calls.end("a")
    assert calls.started == ["a", "c"]


def test_a_place_is_given_back_once(clock) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    calls.come("a")
    place = calls.places["a"]
    place.leave()
    place.leave(served=True)
    assert (calls.queue.running, calls.queue.service_s) == (0, 0)


@pytest.mark.parametrize(("priority", "room"), [(SHEDDABLE, 5), (DEFAULT, 9), (CRITICAL, 10)])
def test_each_priority_may_fill_its_share_of_the_queue(clock, priority, room) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    calls.come("running")
    refusals = [calls.come(f"{n}", priority) for n in range(20)]
    assert [refusal is None for refusal in refusals].count(True) == room
    assert {refusal.reason for refusal in refusals if refusal} == {"queue_full"}


def test_in_a_full_queue_a_better_call_takes_the_place_of_the_last_of_the_worst(clock) -> None:
    calls = Calls(SlotQueue(1, 4, clock=clock))
    for name, priority in [("running", DEFAULT), ("s1", SHEDDABLE), ("s2", SHEDDABLE), ("d1", DEFAULT)]:
        assert calls.come(name, priority) is None
    assert calls.come("d2", DEFAULT) is None, "in place of s2"
    assert calls.come("c1", CRITICAL) is None, "in the room that is kept for it"
    assert calls.come("d3", DEFAULT).reason == "queue_full", "one place more would not do"
    assert calls.come("c2", CRITICAL) is None, "in place of s1"
    assert calls.come("c3", CRITICAL) is None, "in place of d2"
    assert calls.dropped == dict.fromkeys(("s2", "s1", "d2"), "queue_full")
    assert calls.queue.waiting == 4
    for name in ("c4", "c5"):
        refusal = calls.come(name, CRITICAL)
    assert refusal.reason == "queue_full", "there are only critical calls"


def test_nobody_gives_way_to_a_call_that_would_come_too_late_itself(clock) -> None:
    calls = known_service(clock, SlotQueue(1, 2, clock=clock), seconds=5)
    for name in ("s1", "s2"):
        calls.come(name, DEFAULT)
    assert calls.come("vital", CRITICAL, remaining_s=6).reason == "deadline"
    assert not calls.dropped


def test_a_flood_of_a_lower_class_leaves_a_critical_call_its_place_and_its_turn(clock) -> None:
    calls = known_service(clock, SlotQueue(4, 100, clock=clock), seconds=1)
    for n in range(500):
        calls.come(f"s{n}", SHEDDABLE, remaining_s=5)
    assert calls.come("vital", CRITICAL, remaining_s=2) is None
    calls.end("running0")
    assert calls.started[-1] == "vital"


def test_a_call_that_would_wait_too_long_is_refused_with_an_honest_time(clock) -> None:
    calls = known_service(clock, SlotQueue(2, 1000, clock=clock), seconds=4)
    for n in range(9):
        assert calls.come(f"w{n}") is None
    refusal = calls.come("late", DEFAULT, remaining_s=14)  # ten departures at one in two seconds; 9 s of patience
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx(20 - 0.9 * 10)
    assert calls.come("patient", DEFAULT, remaining_s=28) is None


def test_nothing_is_refused_for_its_wait_before_a_service_time_is_known(clock) -> None:
    calls = Calls(SlotQueue(1, 1000, clock=clock))
    assert all(calls.come(f"{n}", SHEDDABLE, remaining_s=0.5) is None for n in range(100))


def test_calls_that_were_not_served_teach_no_service_time(clock) -> None:
    calls = known_service(clock, SlotQueue(2, 10, clock=clock), seconds=2)
    clock.advance(25)
    calls.end("running0", served=False)
    assert calls.queue.service_s == pytest.approx(2)


def test_a_queue_in_which_nothing_was_answered_for_long_goes_by_its_last_service_time(clock) -> None:
    calls = known_service(clock, SlotQueue(2, 1000, clock=clock), seconds=4)
    clock.advance(1000)
    assert calls.come("patient", remaining_s=10) is None
    assert calls.come("late", remaining_s=5).reason == "deadline"


def slow_and_quick(clock: ManualClock, slots: int) -> Calls:
    """A queue that knows a program of 20 s and one of 0.3 s, a mean of 10.15 s; slow calls hold its slots."""
    calls = Calls(SlotQueue(slots, 1000, clock=clock))
    for program, seconds in (("slow", 20), ("quick", 0.3)):
        calls.come(program, program=program)
        clock.advance(seconds)
        calls.end(program)
    for n in range(slots):
        calls.come(f"running{n}", program="slow")
    return calls


def test_a_quick_program_waits_for_slow_ones_slots_as_long_as_its_own_time_allows(clock) -> None:
    calls = slow_and_quick(clock, slots=10)
    wait_s = 10.15 / 10
    assert calls.come("quick", CRITICAL, wait_s + 0.29, "quick").reason == "deadline"
    assert calls.come("quick", CRITICAL, wait_s + 0.31, "quick") is None


def test_a_slow_program_is_refused_by_its_own_time_too(clock) -> None:
    calls = slow_and_quick(clock, slots=10)
    assert calls.come("slow", CRITICAL, 20, "slow").reason == "deadline"
    assert calls.come("unknown", CRITICAL, 20, "unknown") is None  # by the mean of all


def test_who_waited_is_dropped_by_its_own_programs_time(clock) -> None:
    calls = slow_and_quick(clock, slots=1)
    for program in ("slow", "quick", "unknown"):
        calls.come(program, remaining_s=45, program=program)
    clock.advance(40)
    calls.end("running0", served=False)
    assert calls.dropped == {"slow": "deadline"}
    calls.end("quick")
    assert calls.started[-1] == "quick"
    assert calls.dropped == {"slow": "deadline", "unknown": "deadline"}


def test_more_slots_start_what_waits_and_fewer_let_what_runs_go_on(clock) -> None:
    calls = Calls(SlotQueue(1, 10, clock=clock))
    for name in "abcd":
        calls.come(name)
    calls.queue.resize(3)
    assert calls.started == ["a", "b", "c"]
    calls.queue.resize(1)
    calls.end("a")
    calls.end("b")
    assert calls.started == ["a", "b", "c"]
    calls.end("c")
    assert calls.started == ["a", "b", "c", "d"]


class SlotQueueMachine(RuleBasedStateMachine):
    """Slots are never overrun, every call is told once, and none waits while a slot is free."""

    places = Bundle("places")

    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.queue = SlotQueue(3, 12, clock=self.clock)
        self.told: dict[int, int] = {}
        self.running: set[int] = set()
        self.numbers = iter(range(10_000))

    @rule(
        target=places,
        priority=st.sampled_from(PRIORITIES),
        remaining_s=st.floats(-1, 10),
        program=st.sampled_from(["", "a", "b"]),
    )
    def a_call_comes(self, priority, remaining_s, program):
        number = next(self.numbers)
        expires_at = self.clock() + remaining_s

        def on_turn(refusal):
            self.told[number] = self.told.get(number, 0) + 1
            if refusal is None:
                assert self.clock() < expires_at
                self.running.add(number)

        place = self.queue.join(priority, remaining_s, on_turn, program)
        return multiple() if isinstance(place, Refusal) else (number, place)

    @rule(place=consumes(places), served=st.booleans())
    def it_leaves(self, place, served):
        number, held = place
        self.running.discard(number)  # before others are told of the slot
        held.leave(served=served)
        held.leave(served=served)

    @rule(slots=st.integers(1, 6))
    def the_slots_change(self, slots):
        self.queue.resize(slots)

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def what_runs_is_counted_and_nobody_waits_in_vain(self):
        assert self.queue.running == len(self.running)
        assert all(times == 1 for times in self.told.values())
        assert not self.queue.waiting or self.queue.running >= self.queue.slots


SlotQueueMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestSlotQueueMachine = SlotQueueMachine.TestCase
