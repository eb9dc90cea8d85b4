"""What a replica of the ingress starts beside answering calls, and as many threads as a replica of a model has slots."""

from __future__ import annotations

import asyncio
import gc
import threading

import dspy
import pytest
from deployment_fakes import FakeStage, app_config, call, link, run_all, settle

from serve_app.adapters.garbage import YOUNG
from serve_app.deployments import program_replicas
from serve_app.deployments.program_replicas import IngressDeployment, ModelDeployment

BESIDE = {"Ingress.watch_loop", "EagerAccept.run"}


class Replica(IngressDeployment):
    def __del__(self) -> None:  # Ray awaits what the deployment's own gives; the garbage collector does not
        pass


@pytest.fixture
def replica_of_its_own(monkeypatch) -> None:
    """A process that Ray started for the replica alone, but for its log file, traces and line to the control plane."""
    monkeypatch.setattr(program_replicas, "configure_logging", lambda _: None)
    monkeypatch.setattr(program_replicas, "configure_tracing", lambda _: None)
    monkeypatch.setattr(program_replicas, "use_type_memo", lambda: None)
    monkeypatch.setattr(program_replicas, "listening_host", lambda: "127.0.0.1")
    monkeypatch.setattr(program_replicas, "link_to", lambda *_: link())
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


def under_way() -> set[str]:
    return {task.get_coro().__qualname__ for task in asyncio.all_tasks()} & BESIDE


@pytest.mark.usefixtures("replica_of_its_own")
async def test_it_watches_its_loop_and_takes_connections_until_it_ends_and_seldom_collects() -> None:
    replica = Replica(app_config(), None, lambda *_: FakeStage(), {})
    assert under_way() == BESIDE
    assert gc.get_threshold()[0] == YOUNG

    async with asyncio.timeout(5):
        while len(replica._lag._late) < 2:
            await asyncio.sleep(0.01)
        await replica._let_go()
        while under_way():
            await asyncio.sleep(0)


SLOTS = 80


class Meets(dspy.Module):
    """Sync; answers once as many calls as there are slots are under way at once."""

    all_of_them = threading.Barrier(SLOTS)

    def forward(self, question: str) -> dspy.Prediction:
        self.all_of_them.wait(20)
        return dspy.Prediction(answer=question)

    signature = dspy.Signature("question -> answer")


class ModelOnItsOwn(ModelDeployment):
    def __del__(self) -> None:
        pass


@pytest.mark.usefixtures("replica_of_its_own")
async def test_a_sync_program_has_a_thread_for_each_slot_and_who_waits_does_so_for_a_slot() -> None:
    config = app_config()
    program = config.programs[0].model_copy(update={"program": f"{__name__}:Meets"})
    model = config.models[0].model_copy(update={"max_ongoing_requests": SLOTS})
    replica = ModelOnItsOwn(config.model_copy(update={"programs": (program,)}), model, None)
    running = asyncio.create_task(run_all(replica, *(call(number) for number in range(2 * SLOTS))))
    await settle()
    assert (replica.slots.queue.running, replica.slots.queue.waiting) == (SLOTS, SLOTS)
    results = await running
    assert [result.error for result in results.values()] == [None] * 2 * SLOTS
    await replica._let_go()
