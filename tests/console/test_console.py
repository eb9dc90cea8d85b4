"""The operations page in a real browser, against a server on loopback."""

import json
from collections.abc import Iterator

import pytest
from console_server import MARKUP, PROBLEM, ConsoleServer

pytest.importorskip("selenium", reason="selenium is not installed (it is in the dev extra)")

from console_browser import CHROMEDRIVER, CHROMIUM, Page, browser
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)",
)

MODEL = "tr[data-model='{}']"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[ConsoleServer]:
    server = ConsoleServer(prefix=getattr(request, "param", ""))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def console(page: Page, server: ConsoleServer) -> Iterator[Page]:
    """The page with its first answer on it; closed afterwards, so that it asks nobody."""
    page.open(server.url)
    page.until_text("#connection", "connected")
    page.until(lambda: page.all("#try form"), 5, "a form")
    yield page
    page.driver.get("about:blank")


def fill_in(page: Page) -> None:
    for name, text in {"ticket": "My invoice is wrong.", "urgency": "4", "tags": '["a", "b"]'}.items():
        control = page.one(f"#input-{name}")
        control.clear()
        control.send_keys(text)
    page.one("#input-channel option[value='1']").click()


def press_call(page: Page) -> None:
    page.one("#try form button[type=submit]").click()


def test_it_shows_what_the_status_says(console) -> None:
    assert console.text("#level") == "level full"
    assert console.text("#models-window") == "counted over 30 s"
    large, small = console.text(MODEL.format("large")).split(), console.text(MODEL.format("small")).split()
    assert large == ["large", "closed", "healthy", "412", "0", "2.11", "s", "17", "0.80", "reward", "$1.2"]
    assert small == ["small", "closed", "healthy", "0", "0", "–", "0", "–", "–"]
    system = console.text("#system")
    for shown in ("Model-medium\n3", "answers, near\n1,204", "all models\n$1.23", "able to answer\nyes"):
        assert shown in system
    console.one("#policy summary").click()
    assert "failure_rate_threshold\n0.5" in console.text("#policy-view")
    assert "refused" not in console.text("#policy-view")


def test_counters_are_words_and_no_figure_is_broken(console) -> None:
    console.screen(1000, 900)
    assert "redis failures skipped\n11,300" in console.text("#system")
    lines = console.script(
        """return [...document.querySelectorAll("#system dd")].map((figure) => {
            const text = document.createRange();
            text.selectNodeContents(figure);
            return text.getClientRects().length;
        });"""
    )
    assert set(lines) == {1}


@pytest.mark.parametrize("server", ["", "/compact"], indirect=True)
def test_every_address_is_below_where_it_is_mounted_and_the_browser_has_nothing_to_say(console, server) -> None:
    console.until(lambda: server.paths.count(f"{server.prefix}/metrics") > 2, 8, "a third poll")
    assert all(path.startswith(f"{server.prefix}/") for path in server.paths)
    loaded = console.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(loaded) > 10
    assert all(address.startswith(server.url) for address in loaded)
    assert console.complaints() == []


def test_plots_are_the_differences_between_polls(console) -> None:
    # Each poll finds 21 more calls, of which one failed; half of them took at most 0.22 s.
    console.until(lambda: len(line(console)) > 20, 8, "a line of several points")
    assert 10 < float(console.text(".plot:nth-child(1) .key-0 strong")) < 25
    assert 0.4 < float(console.text(".plot:nth-child(1) .key-1 strong")) < 1.3
    assert 150 < float(console.text(".plot:nth-child(2) .key-0 strong").split()[0]) < 280
    assert console.text(".plot:nth-child(3) .key-0 strong") == "50 %"
    assert console.text(".plot:nth-child(4) .key-0 strong").startswith("$")
    assert console.text(".plot:nth-child(5) .key-0 strong") == "full"
    assert console.one(".plot svg").get_attribute("aria-label").startswith("Calls per second: all ")


def line(page: Page) -> str:
    return page.one(".plot .line-0").get_attribute("d") or ""


def test_an_open_breaker_shows_within_two_seconds(console, server) -> None:
    server.status["models"]["large"] |= {"breaker": "open", "healthy": False, "failures": 9}
    server.status["level"] = {"level": "degraded", "reason": "p95_latency_s 7.1", "since_s": 2.0}
    assert console.until_text(MODEL.format("large") + " .pill.bad", "open") < 2
    assert "not healthy" in console.text(MODEL.format("large"))
    assert console.text("#level") == "level degraded"
    assert "p95_latency_s 7.1" in console.text("#reason")


def test_a_call_is_posted_with_the_types_of_its_inputs_and_its_answer_is_shown(console, server) -> None:
    fill_in(console)
    console.one("#option-complexity option:nth-child(4)").click()
    console.one("#option-deadline").send_keys("2.5")
    console.one("#option-budget").send_keys("0.25")
    console.one("#option-tokens").send_keys("64")
    console.one("#option-priority option:nth-child(2)").click()
    console.one("#option-fresh").click()
    press_call(console)
    console.until_text(".answer", "Answer")
    ((program, body, headers),) = server.posts
    assert program == "triage"
    assert headers["cache-control"] == "no-cache"
    wishes = {"deadline_s": 2.5, "budget_usd": 0.25, "max_tokens": 64, "priority": "critical"}
    assert body["options"] == {"complexity": "high"} | wishes
    expected = {"ticket": "My invoice is wrong.", "urgency": 4, "channel": "phone", "tags": ["a", "b"]}
    assert body["inputs"] == expected | {"is_customer": True}
    answer = console.text(".answer")
    for shown in ("category\nbilling", "priority\n4", "sure\nnull", "cost\n$0.00123", "120 in, 12 out", "cache\nmiss"):
        assert shown in answer
    assert console.text(".route li").splitlines() == ["large server error 21 ms", "medium ok 512 ms"]


def test_optional_inputs_and_a_pinned_model_are_sent_when_chosen(console, server) -> None:
    fill_in(console)
    console.one("#input-weight").send_keys("0.5")
    console.one("#input-context").send_keys("known")
    console.one("#input-is_customer").click()
    console.one("#option-model option[value=small]").click()
    press_call(console)
    console.until_text(".answer", "Answer")
    body = server.posts[0][1]
    assert body["options"] == {"complexity": "auto", "model": "small"}
    assert {name: body["inputs"][name] for name in ("weight", "context", "is_customer")} == {
        "weight": 0.5,
        "context": "known",
        "is_customer": False,
    }


def test_what_is_no_value_is_not_sent_and_the_control_says_so(console, server) -> None:
    fill_in(console)
    console.one("#input-tags").send_keys("]")
    press_call(console)
    assert "not JSON" in console.one("#input-tags").get_property("validationMessage")
    fill_in(console)
    console.one("#input-urgency").send_keys("4")  # 44 is above the maximum
    press_call(console)
    assert console.script("return document.querySelector('#try form').checkValidity()") is False
    assert server.posts == []


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (
            (503, "application/problem+json", json.dumps(PROBLEM)),
            [
                "503 No model available",
                PROBLEM["detail"],
                "code\nno_route",
                "retry after\n12.5 s",
                "large timeout 1.5 s",
            ],
        ),
        (
            (503, "text/plain", "Request dropped due to backpressure"),
            ["503 no problem document", "dropped due to back"],
        ),
    ],
)
def test_a_refused_call_shows_why(console, server, reply, shown) -> None:
    server.reply = reply
    fill_in(console)
    press_call(console)
    console.until_text(".answer", shown[0])
    for text in shown:
        assert text in console.text(".answer")


def test_nothing_a_server_says_becomes_markup(console, server) -> None:
    server.status["models"][MARKUP] = server.status["models"]["small"] | {"breaker": MARKUP}
    server.status["level"] = {"level": "minimal", "reason": MARKUP, "since_s": 2.0}
    fill_in(console)
    press_call(console)
    console.until_text(".answer", MARKUP)
    console.one("a[href='#program/hostile']").click()
    console.until_text("#try", "Try hostile")
    console.until_text("#reason", MARKUP)
    for place in ("#models-view", "#programs", "#try"):
        assert MARKUP in console.text(place)
    assert console.all("main img, main b") == []
    assert "owned" not in console.driver.title


def test_what_a_person_typed_and_opened_outlives_the_polls(console, server) -> None:
    console.one("#policy summary").click()
    console.one("#input-context").send_keys("half a sent")
    polls = len(server.paths)
    server.status["cost_usd"] = 7.0
    console.until_text("#system", "$7")
    console.until(lambda: len(server.paths) > polls + 4, 8, "two more polls")
    assert console.one("#input-context").get_property("value") == "half a sent"
    assert console.script("return document.activeElement.id") == "input-context"
    assert console.one("#policy").get_attribute("open") is not None


def test_a_lost_server_is_said_and_its_return_noticed(console, server) -> None:
    assert console.complaints() == []
    server.stop()
    console.until_text("[role=alert]", "Connection to the server lost", 4)
    console.until_text("#connection", "ago")
    assert console.driver.title == "Connection lost – Switchyard"
    server.status["models"]["large"]["requests"] = 777
    server.programs = [
        *server.programs,
        {"name": "late", "description": "", "version": "1", "models": [], "inputs": {}},
    ]
    server.start()
    console.until_text("[role=alert]", "Connected to the server again", 4)
    console.until_text(MODEL.format("large"), "777")
    console.until_text("#programs", "late")
    assert console.driver.title == "Switchyard"
    console.until(lambda: console.text("[role=alert]") == "", 8, "the message goes away")


@pytest.mark.parametrize(("trouble", "said"), [("silent", "no answer for 4 s"), ("failing", "status 503")])
def test_a_server_that_does_not_answer_is_lost_too(console, server, trouble, said) -> None:
    server.trouble = trouble
    console.until_text("[role=alert]", said, 8)
    server.trouble = ""
    console.until_text("[role=alert]", "Connected to the server again", 8)


def test_a_control_plane_out_of_reach_is_told_apart_from_a_lost_server(console, server) -> None:
    server.status = {"ready": True, "level": "full", "control_plane": "unreachable"}
    console.until_text("[role=alert]", "control plane cannot be reached")
    assert console.text("#connection") == "connected"
    assert console.text("#level") == "level full"
    assert "No model is known" in console.text("#models-view")


def test_a_keyboard_is_enough_and_its_place_is_seen(console, server) -> None:
    fill_in(console)
    console.script("document.activeElement.blur(); window.scrollTo(0, 0)")
    console.driver.get(server.url + "#program/triage")
    console.driver.refresh()
    console.until(lambda: console.all("#try form"), 5, "a form")
    stops = []
    for _ in range(40):
        ActionChains(console.driver).send_keys(Keys.TAB).perform()
        stops.append(
            console.script(
                "const at = document.activeElement, style = getComputedStyle(at);"
                "return [at.id || at.textContent, style.outlineStyle, parseFloat(style.outlineWidth)]"
            )
        )
        if stops[-1][0] == "Call":
            break
    names = [name for name, _, _ in stops]
    assert names[0] == "Skip to the figures"
    assert {"API", "triage", "input-ticket", "input-urgency", "option-model", "option-fresh"} < set(names)
    assert names[-1] == "Call"
    assert all(outline != "none" and width >= 2 for _, outline, width in stops)
    console.one("#input-urgency").send_keys("2")
    console.one("#input-tags").send_keys("[]")
    console.one("#try form button[type=submit]").send_keys(Keys.ENTER)
    console.until_text(".answer", "Answer")
    assert console.script("return document.activeElement.textContent") == "Call"


def test_a_refused_policy_is_said_above_the_one_in_force(console, server) -> None:
    console.one("#policy summary").click()
    server.status["policy_problems"] = ["degradation.exit_ratio: must be below 1"]
    console.until_text("#policy-view .refused", "exit_ratio: must be below 1")
    assert "failure_rate_threshold" in console.text("#policy-view")
    server.status["policy_problems"] = []
    console.until(lambda: not console.all("#policy-view .refused"), 5, "the problem to go")


def test_what_is_jumped_to_is_not_under_the_header(console) -> None:
    console.screen(1280, 500, dark=False)
    console.script("location.hash = '#models'")
    console.script("const of = (name) => document.querySelector(name).getBoundingClientRect(); window.edges = of")
    below = "return window.edges('#models').top >= window.edges('header').bottom - 1"
    console.until(lambda: console.script(below), 3, "the models below the header")


def test_every_control_has_a_label(console) -> None:
    unnamed = "return [...document.querySelectorAll('input, select, textarea')].filter((c) => !c.labels.length).length"
    assert console.script("return document.querySelectorAll('input, select, textarea').length") > 8
    assert console.script(unnamed) == 0


@pytest.mark.parametrize(
    ("name", "width", "height", "dark"),
    [
        ("desktop", 1280, 900, False),
        ("desktop-dark", 1280, 900, True),
        ("phone", 390, 844, False),
        ("phone-dark", 360, 740, True),
    ],
)
def test_it_fits_the_screen_in_light_and_dark(console, server, shots, name, width, height, dark) -> None:
    server.status["models"]["large"] |= {"breaker": "open", "healthy": False, "failures": 9, "retry_after_s": 21.4}
    server.status["models"]["small"] |= {"breaker": "half_open", "healthy": False}
    server.status["level"] = {"level": "degraded", "reason": "p95_latency_s 7.1 ≥ 5", "since_s": 74.0}
    console.screen(width, height, dark=dark)
    console.until_text("#level", "degraded")
    fill_in(console)
    press_call(console)
    console.until_text(".answer", "Answer")
    console.until(lambda: len(line(console)) > 30, 8, "a line of several points")
    size = "const {scrollWidth, clientWidth} = document.documentElement; return [scrollWidth, clientWidth, innerWidth]"
    scrolled, seen, inner = console.script(size)
    assert scrolled == seen
    assert inner == width
    back = console.script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in back.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 200) is dark
    console.save(shots / f"{name}.png")
    assert (shots / f"{name}.png").stat().st_size > 20_000
