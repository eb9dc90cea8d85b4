"""Real questions and the recorded words of two real models, through the whole graph under load."""

import asyncio
import csv
from itertools import islice

import httpx
import pytest
from recorded import COLUMNS, RECORDED
from running_cluster import Cluster

QUESTIONS = 200
CALLERS = 32
MODELS = {"large": "sim-large", "small": "sim-small"}

pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason=f"no recorded answers at {RECORDED}")


def recorded() -> list[dict[str, str]]:
    with RECORDED.open(newline="", encoding="utf-8") as file:
        return list(islice(csv.DictReader(file), QUESTIONS))


async def ask_all(base: str, rows: list[dict[str, str]]) -> dict[tuple[str, str], list[httpx.Response]]:
    slots = asyncio.Semaphore(CALLERS)
    replies: dict[tuple[str, str], list[httpx.Response]] = {}

    async with httpx.AsyncClient(base_url=base, timeout=60) as client:

        async def ask(model: str, question: str) -> None:
            body = {"inputs": {"question": question}, "options": {"model": model}}
            async with slots:
                reply = await client.post("/v1/programs/math", json=body)
            replies.setdefault((model, question), []).append(reply)

        await asyncio.gather(*(ask(model, row["prompt"]) for row in rows for model in MODELS))
    return replies


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_every_answer_is_the_recorded_one_and_accuracy_is_the_files(cluster, provider, graph) -> None:
    rows = recorded()
    provider.reset_stats()
    replies = asyncio.run(ask_all(cluster.url(graph), rows))
    assert len(replies) == QUESTIONS * len(MODELS)
    for model, simulated in MODELS.items():
        column = COLUMNS[simulated]
        served_right = 0
        for row in rows:
            (reply,) = replies[model, row["prompt"]]
            assert reply.status_code == 200, reply.text
            body = reply.json()
            assert body["meta"]["model"] == model
            assert body["meta"]["cache"] == "miss"
            assert body["outputs"]["answer"].strip() == row[f"{column}_response"].strip()
            served_right += row[column] == "True"
        assert served_right == sum(row[column] == "True" for row in rows)
        assert provider.stats()["models"][simulated]["outcomes"] == {"ok": QUESTIONS}
