"""A bulk run against a real HTTP server: what is sent, what is written, how it goes on after an end."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from bulk_server import Body, BulkServer, answered

from serve_app.bulk.attempt import Retries
from serve_app.bulk.run import BulkRun
from serve_app.bulk.tally import Tally
from serve_app.errors import ConfigError, NoRoute

FEW = ("a", "b", "c")


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


def written(tmp_path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({line["row"] for line in lines}) == len(lines)
    return {line["row"]: line for line in lines}


def bulk(tmp_path, url: str, tickets=FEW, **options) -> BulkRun:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"ticket": ticket}) + "\n" for ticket in tickets))
    options = {"program": "triage", "retries": Retries(5, sleep=no_wait)} | options
    return BulkRun(source=source, target=tmp_path / "out.jsonl", url=url, **options)


def refuse(status: int, code: str, until: int = 10**9, **headers: str):
    def answers(ticket: str, tries: int):
        if ticket != "b" or tries > until:
            return answered(ticket, tries)
        return status, {"code": code, "detail": f"{code} it is"}, headers

    return answers


async def test_every_row_is_asked_once_as_sheddable_and_written_with_its_number(tmp_path) -> None:
    server, tally = BulkServer(), Tally(io.StringIO())
    async with server.running() as url:
        await bulk(tmp_path, url).run(tally)
    assert {number: line["outputs"]["category"] for number, line in written(tmp_path).items()} == {
        1: "A",
        2: "B",
        3: "C",
    }
    assert [body["options"] for body in server.bodies] == [{"priority": "sheddable"}] * 3
    assert (tally.rows, tally.answered, tally.failed, tally.cost_usd) == (3, 3, 0, 1.5)


async def test_a_rows_own_options_go_before(tmp_path) -> None:
    server = BulkServer()
    async with server.running() as url:
        run = bulk(tmp_path, url)
        run.source.write_text('{"inputs": {"ticket": "a"}, "options": {"priority": "default", "model": "m"}}\n')
        await run.run(Tally(io.StringIO()))
    assert server.bodies[0]["options"] == {"priority": "default", "model": "m"}


async def test_no_more_calls_at_once_than_allowed(tmp_path) -> None:
    server = BulkServer()
    async with server.running() as url:
        await bulk(tmp_path, url, [str(number) for number in range(50)], concurrency=4).run(Tally(io.StringIO()))
    assert server.most_at_once <= 4
    assert len(written(tmp_path)) == 50


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refused_row_is_asked_again(tmp_path, status) -> None:
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    server = BulkServer(refuse(status, "shed", until=2, **{"Retry-After": "3"}))
    async with server.running() as url:
        await bulk(tmp_path, url, retries=Retries(100, sleep=sleep, draw=lambda: 0.0)).run(Tally(io.StringIO()))
    assert server.asked["b"] == 3
    assert waits == [3.0, 3.0]
    assert "outputs" in written(tmp_path)[2]


@pytest.mark.parametrize(
    ("outcomes", "times"), [(["rejected", "rejected"], 3), (["rejected", "timeout"], 1), ([], 1), ("nonsense", 1)]
)
async def test_a_row_that_waited_in_vain_is_asked_again_and_one_that_ran_out_of_time_is_not(
    tmp_path, outcomes, times
) -> None:
    problem = {"code": "deadline_exceeded", "detail": "late", "attempts": [{"outcome": each} for each in outcomes]}

    def answers(ticket: str, tries: int):
        return answered(ticket, tries) if ticket != "b" or tries > 2 else (504, problem, {})

    server = BulkServer(answers)
    async with server.running() as url:
        await bulk(tmp_path, url, retries=Retries(100, sleep=no_wait)).run(Tally(io.StringIO()))
    assert server.asked["b"] == times
    assert ("outputs" in written(tmp_path)[2]) == (times == 3)


ABSENT = [
    (404, "Path '/v1/programs/triage' not found."),
    (500, "Internal Server Error"),
    (502, "<html>Bad Gateway</html>"),
    (503, "Service Unavailable"),
    (504, '{"message": "upstream timed out"}'),
    (200, "<html>Welcome</html>"),
]
"""What a proxy says when no application is behind it, or a stranger."""


def proxy(status: int, body: str, until: int = 10**9):
    return lambda ticket, tries: answered(ticket, tries) if ticket != "b" or tries > until else (status, body, {})


@pytest.mark.parametrize(("status", "body"), ABSENT)
async def test_a_row_that_only_a_proxy_replied_to_is_asked_again(tmp_path, status, body) -> None:
    server = BulkServer(proxy(status, body, until=2))
    async with server.running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
    assert server.asked["b"] == 3
    assert "outputs" in written(tmp_path)[2]


@pytest.mark.parametrize(("status", "body"), ABSENT)
async def test_an_application_that_is_gone_behind_its_proxy_fails_no_row(tmp_path, status, body) -> None:
    server = BulkServer()

    def then_gone(ticket: str, tries: int) -> tuple[int, Body, dict[str, str]]:
        if ticket == "a":
            return answered(ticket, tries)
        server.description = status, body
        return status, body, {}

    server.answers = then_gone
    async with server.running() as url:
        with pytest.raises(NoRoute, match=f"does not answer any more: .*HTTP status {status}"):
            await bulk(tmp_path, url, concurrency=1, retries=Retries(0)).run(Tally(io.StringIO()))
    assert list(written(tmp_path)) == [1]


@pytest.mark.parametrize(("status", "body"), ABSENT)
async def test_a_row_that_gets_no_answer_of_an_application_that_is_there_fails_alone(tmp_path, status, body) -> None:
    server = BulkServer(proxy(status, body))
    async with server.running() as url:
        await bulk(tmp_path, url, concurrency=1, retries=Retries(0)).run(Tally(io.StringIO()))
    assert ["outputs" in line for line in written(tmp_path).values()] == [True, False, True]
    error = written(tmp_path)[2]["error"]
    assert (server.asked["b"], error["code"]) == (2, "no_answer")
    assert f"HTTP status {status}" in error["detail"]


async def test_a_row_that_is_refused_as_soon_as_the_application_is_back_waits_on(tmp_path) -> None:
    def answers(ticket: str, tries: int):
        if ticket != "b" or tries > 2:
            return answered(ticket, tries)
        return (502, "<html>Bad Gateway</html>", {}) if tries == 1 else (429, {"code": "shed", "detail": "full"}, {})

    server = BulkServer(answers)
    async with server.running() as url:
        retries = Retries(0.2, sleep=no_wait, draw=lambda: 0.0)  # less than a first wait: each is asked once
        await bulk(tmp_path, url, concurrency=1, retries=retries).run(Tally(io.StringIO()))
    assert server.asked["b"] == 3
    assert "outputs" in written(tmp_path)[2]


@pytest.mark.parametrize("status", [401, 403, 408, 413])
async def test_what_a_proxy_refuses_for_good_is_the_rows_end_and_says_why(tmp_path, status) -> None:
    server = BulkServer(proxy(status, "<html>\n  Go away" + " and away" * 99))
    async with server.running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
    error = written(tmp_path)[2]["error"]
    assert (server.asked["b"], error["code"]) == (1, f"http_{status}")
    assert error["detail"].startswith(f"HTTP status {status}: <html> Go away and away")
    assert len(error["detail"]) < 150


@pytest.mark.parametrize(("status", "code"), [(404, "unknown_model"), (500, "program_error")])
async def test_what_the_application_itself_refuses_is_final_whatever_the_status(tmp_path, status, code) -> None:
    server = BulkServer(refuse(status, code))
    async with server.running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
    assert (server.asked["b"], written(tmp_path)[2]["error"]["code"]) == (1, code)


@pytest.mark.parametrize(("status", "code"), [(422, "invalid_inputs"), (502, "bad_output"), (504, "deadline_exceeded")])
async def test_a_failed_row_is_kept_with_its_error_and_the_others_go_on(tmp_path, status, code) -> None:
    server, shown = BulkServer(refuse(status, code)), io.StringIO()
    tally = Tally(shown)
    async with server.running() as url:
        await bulk(tmp_path, url).run(tally)
    tally.end()
    assert written(tmp_path)[2]["error"] == {"code": code, "detail": f"{code} it is"}
    assert (server.asked["b"], tally.answered, tally.failed) == (1, 2, 1)
    assert f"row 2: {code}" in shown.getvalue()
    assert "3 rows: 2 answered, 1 failed, 0 left; $1" in shown.getvalue()


async def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path) -> None:
    server = BulkServer()
    async with server.running() as url:
        first = asyncio.create_task(bulk(tmp_path, url, "abcdef", concurrency=2).run(Tally(io.StringIO())))
        while not (tmp_path / "out.jsonl").exists() or len(written(tmp_path)) < 2:
            await asyncio.sleep(0)
        server.gate.clear()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        finished = written(tmp_path)
        server.gate.set()
        server.asked.clear()
        tally = Tally(io.StringIO())
        await bulk(tmp_path, url, "abcdef", concurrency=2).run(tally)
    assert sorted(written(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert {number: written(tmp_path)[number] for number in finished} == finished
    assert sum(server.asked.values()) == 6 - len(finished)
    assert (tally.rows, tally.answered) == (6, 6)


async def test_a_finished_run_asks_nobody(tmp_path) -> None:
    async with BulkServer().running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
    tally = Tally(io.StringIO())
    await bulk(tmp_path, url).run(tally)
    assert (tally.answered, tally.cost_usd) == (3, 1.5)


async def test_failed_rows_are_asked_again_when_told_so(tmp_path) -> None:
    server = BulkServer(refuse(502, "bad_output", until=1))
    async with server.running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
        assert server.asked["b"] == 1
        await bulk(tmp_path, url, retry_failed=True).run(Tally(io.StringIO()))
    assert server.asked == {"a": 1, "b": 2, "c": 1}
    assert all("outputs" in line for line in written(tmp_path).values())


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}])
async def test_an_output_of_another_input_is_refused_and_left_as_it_is(tmp_path, options) -> None:
    async with BulkServer(refuse(502, "bad_output")).running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
        before = written(tmp_path)
        with pytest.raises(ConfigError, match=r"its row 3 is not that row of .*another input"):
            await bulk(tmp_path, url, ("a", "b", "other"), **options).run(Tally(io.StringIO()))
        assert written(tmp_path) == before
        await bulk(tmp_path, url, ("a", "b", "other"), restart=True).run(Tally(io.StringIO()))
    assert written(tmp_path)[3]["outputs"] == {"category": "OTHER"}


async def test_the_input_is_never_the_output(tmp_path) -> None:
    run = bulk(tmp_path, "http://127.0.0.1:9")
    same = BulkRun(program="triage", source=run.source, target=run.source, url=run.url)
    with pytest.raises(ConfigError, match="overwrite"):
        await same.run(Tally(io.StringIO()))


async def test_nobody_at_the_url_is_said_at_once(tmp_path) -> None:
    async with BulkServer().running() as url:
        pass
    with pytest.raises(ConfigError, match="nothing answers at"):
        await bulk(tmp_path, url).run(Tally(io.StringIO()))


@pytest.mark.parametrize("options", [{"restart": True}, {"retry_failed": True}])
async def test_what_is_to_be_asked_again_stays_until_somebody_answers(tmp_path, options) -> None:
    async with BulkServer(refuse(502, "bad_output")).running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
    before = written(tmp_path)
    with pytest.raises(ConfigError, match="nothing answers at"):
        await bulk(tmp_path, url, **options).run(Tally(io.StringIO()))
    assert written(tmp_path) == before


async def test_a_new_run_of_no_rows_forgets_too(tmp_path) -> None:
    async with BulkServer().running() as url:
        await bulk(tmp_path, url).run(Tally(io.StringIO()))
        await bulk(tmp_path, url, (), restart=True).run(Tally(io.StringIO()))
    assert written(tmp_path) == {}


async def test_a_program_that_is_not_served_is_said_at_once_and_leaves_no_output(tmp_path) -> None:
    async with BulkServer().running() as url:
        with pytest.raises(ConfigError, match="did you mean 'triage'"):
            await bulk(tmp_path, url, program="tri/age").run(Tally(io.StringIO()))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("status", "body"), ABSENT)
async def test_a_proxy_without_an_application_is_said_at_once(tmp_path, status, body) -> None:
    server = BulkServer()
    server.description = status, body
    async with server.running() as url:
        with pytest.raises(ConfigError, match=f"something answers at .*, but no Switchyard .*{status}.*still starting"):
            await bulk(tmp_path, url).run(Tally(io.StringIO()))


async def test_a_proxy_that_lets_nobody_in_is_said_at_once(tmp_path) -> None:
    server = BulkServer()
    server.description = 403, "Members only"
    async with server.running() as url:
        with pytest.raises(ConfigError, match="HTTP status 403: Members only"):
            await bulk(tmp_path, url).run(Tally(io.StringIO()))


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_url_that_redirects_is_refused_with_the_one_to_give(tmp_path, status) -> None:
    server, there = BulkServer(), BulkServer()
    async with server.running() as url, there.running() as right:
        server.description = status, "Moved", {"Location": f"{right}/v1/programs/triage"}
        with pytest.raises(ConfigError, match=f"^{url} redirects to {right}: give that URL$"):
            await bulk(tmp_path, url).run(Tally(io.StringIO()))
    assert (server.bodies, there.described) == ([], 0)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("/login?next=%2F", "{url}/login?next=%2F"),
        ("https://sso.example/" + "a" * 200, "https://sso.example/" + "a" * 100 + "…"),
        ("http://[no-address", "http://[no-address"),
    ],
)
async def test_a_redirect_to_something_else_says_where_to(tmp_path, location, where) -> None:
    server = BulkServer()
    server.description = 302, "Found", {"Location": location}
    async with server.running() as url:
        with pytest.raises(ConfigError) as refused:
            await bulk(tmp_path, url).run(Tally(io.StringIO()))
    assert refused.value.problems == (f"{url} redirects to {where.format(url=url)}",)


@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_redirect_amid_the_run_is_the_rows_end_and_followed_by_nobody(tmp_path, status) -> None:
    there = BulkServer()
    async with there.running() as right:
        moved = status, "Moved", {"Location": f"{right}/v1/programs/triage"}
        server = BulkServer(lambda ticket, tries: moved if ticket == "b" else answered(ticket, tries))
        async with server.running() as url:
            await bulk(tmp_path, url).run(Tally(io.StringIO()))
    says = f"{url} redirects to {right}: give that URL"
    assert written(tmp_path)[2]["error"] == {"code": "redirected", "detail": says}
    assert ["outputs" in line for _, line in sorted(written(tmp_path).items())] == [True, False, True]
    assert (server.asked["b"], there.described, there.bodies) == (1, 0, [])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000", "http:// is missing, as in http://127.0.0.1:8000"),
        ("localhost:8000/compact", "http:// is missing, as in http://localhost:8000/compact"),
        ("ftp://127.0.0.1", "must begin with http:// or https://"),
    ],
)
async def test_a_url_that_is_none_for_http_says_what_is_missing(tmp_path, url, says) -> None:
    with pytest.raises(ConfigError, match=says):
        await bulk(tmp_path, url).run(Tally(io.StringIO()))


async def test_an_application_that_goes_away_fails_no_row(tmp_path) -> None:
    server = BulkServer()
    server.goes_away_after = 5
    async with server.running() as url:
        run = bulk(tmp_path, url, [str(number) for number in range(20)], concurrency=2, retries=Retries(0))
        with pytest.raises(NoRoute, match="does not answer any more"):
            await run.run(Tally(io.StringIO()))
    assert 0 < len(written(tmp_path)) <= 5
    assert all("error" not in line for line in written(tmp_path).values())
