"""Orders from the operations page in a real browser: what is sent, what is refused, and in which words."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

import pytest
from console_server import ConsoleServer

pytest.importorskip("selenium", reason="selenium is not installed (it is in the dev extra)")

from console_browser import CHROMEDRIVER, CHROMIUM, Page, browser
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from serve_app.core.operator_access import OperatorAccess

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)",
)

KEY = "c0rrect-horse"
SAID = "#order-said"
KEPT = "return sessionStorage.getItem('switchyard.operator-key')"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def server() -> Iterator[ConsoleServer]:
    server = ConsoleServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def keyed(server: ConsoleServer) -> ConsoleServer:
    """A server with a key."""
    server.access = OperatorAccess(KEY.encode())
    return server


@pytest.fixture
def console(page: Page, server: ConsoleServer) -> Iterator[Page]:
    opened(page, server.url)
    yield page
    page.script("try { sessionStorage.clear() } catch {}")
    page.driver.get("about:blank")


def opened(page: Page, url: str) -> None:
    page.open(url)
    page.until_text("#connection", "connected")
    page.until(lambda: page.all("#order-program option[value=triage]"), 5, "the programs to choose from")


def press(page: Page, form: str, button: str) -> None:
    forms = {found.get_attribute("aria-label"): found for found in page.all("#operate form")}
    (found,) = [each for each in forms[form].find_elements("tag name", "button") if each.text == button]
    page.script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def isolate(page: Page) -> None:
    page.one("#order-model option[value=medium]").click()
    page.one("#order-reason").clear()
    page.one("#order-reason").send_keys("wrong answers")
    press(page, "Models", "Isolate")


def clear_everything(page: Page) -> None:
    page.one("#order-program option[value='*']").click()
    press(page, "Cache", "Clear")


def said_is_in_sight(page: Page) -> bool:
    top, bottom, height = page.script(
        "const {top, bottom} = document.querySelector('#order-said').getBoundingClientRect(); return [top, bottom, innerHeight]"
    )
    return top >= 0 and bottom <= height + 1


def enter_key(page: Page, key: str) -> None:
    page.until(lambda: page.one("#operator-key").is_displayed(), 3, "the key is asked for")
    page.one("#operator-key").send_keys(key)
    press(page, "Operator key", "Use the key")


def test_each_order_is_sent_and_said_to_be_done(console, server) -> None:
    isolate(console)
    console.until_text(SAID, "medium is isolated")
    press(console, "Models", "Reset")
    console.until_text(SAID, "medium was reset")
    console.one("#order-level option[value=minimal]").click()
    press(console, "Level of service", "Hold")
    console.until_text(SAID, "Level minimal is held")
    console.one("#order-level option[value='']").click()
    press(console, "Level of service", "Hold")
    console.until_text(SAID, "follows the policy and the readings again")
    clear_everything(console)
    console.until_text(SAID, "every program")
    console.one("#order-program option[value=triage]").click()
    press(console, "Cache", "Clear")
    console.until_text(SAID, "answers of triage")
    orders = [("isolate", "medium", "wrong answers"), ("reset", "medium"), ("pin", "minimal"), ("pin", None)]
    assert server.orders == [*orders, ("forget", None), ("forget", "triage")]
    assert console.complaints() == []


def test_answers_are_forgotten_of_what_was_chosen_and_nothing_is_at_first(console, server) -> None:
    press(console, "Cache", "Clear")
    assert console.script("return document.querySelector('#order-program').validity.valueMissing") is True
    assert server.orders == []


def test_a_model_is_not_isolated_without_a_reason(console, server) -> None:
    press(console, "Models", "Isolate")
    assert console.script("return document.querySelector('#order-reason').validity.valueMissing") is True
    assert server.orders == []


def test_where_no_key_is_needed_none_is_asked_for(console) -> None:
    assert not console.one("#operator-key").is_displayed()


def test_without_the_key_an_order_is_refused_the_page_says_so_and_the_key_gives_it_again(page, keyed) -> None:
    opened(page, keyed.url)
    isolate(page)
    page.until_text(SAID, "Refused: this needs the operator key. Nothing was changed.")
    assert keyed.orders == []
    assert page.script("return document.activeElement.id") == "operator-key"
    assert said_is_in_sight(page)
    enter_key(page, "wr0ng")
    page.until_text(SAID, "Refused: that operator key is not the right one. Nothing was changed.")
    assert keyed.orders == []
    assert page.script(KEPT) is None
    enter_key(page, KEY)
    page.until_text(SAID, "medium is isolated")
    assert keyed.orders == [("isolate", "medium", "wrong answers")]
    assert page.one("#operator-key").get_property("value") == ""
    clear_everything(page)  # the key was asked for once
    page.until_text(SAID, "every program")
    page.driver.refresh()
    page.until_text("#connection", "connected")
    page.until(lambda: page.all("#order-program option[value=triage]"), 5, "the programs to choose from")
    clear_everything(page)
    page.until_text(SAID, "every program")
    assert len(keyed.orders) == 3
    press(page, "Operator key", "Forget the key")
    page.until_text(SAID, "The key is forgotten")
    assert page.script(KEPT) is None
    clear_everything(page)
    page.until_text(SAID, "this needs the operator key")
    assert len(keyed.orders) == 3
    assert KEY not in "".join(keyed.paths) + page.driver.current_url


def test_the_key_shows_the_policy_and_a_wrong_one_does_not(page, keyed) -> None:
    opened(page, keyed.url)
    page.until(lambda: page.one("#operator-key").is_displayed(), 3, "the key can be entered")
    page.one("#policy summary").click()
    page.until_text("#policy-view", "enter the operator key")
    enter_key(page, "wr0ng")
    page.until_text(SAID, "That operator key is not the right one.")
    enter_key(page, KEY)
    page.until_text(SAID, "The key is right.")
    page.until_text("#policy-view", "failure_rate_threshold")
    page.script("sessionStorage.clear()")


def test_a_refusal_that_no_key_would_mend_is_shown_with_its_reason(console, server) -> None:
    server.access = OperatorAccess()
    clear_everything(console)
    console.until_text(SAID, "Refused: no operator key is set")
    assert server.orders == []


def test_an_order_that_did_not_arrive_is_told_apart_from_a_refused_one(console, server) -> None:
    server.obeys = False
    clear_everything(console)
    console.until_text(SAID, "the control plane cannot be asked")
    server.stop()
    clear_everything(console)
    console.until_text(SAID, "Whether the order arrived is not known", 6)
    server.start()


def test_a_name_that_was_made_to_point_here_gives_no_orders(page, server) -> None:
    opened(page, server.url.replace("127.0.0.1", "rebound.test"))
    clear_everything(page)
    page.until_text(SAID, "the Host header does not name this machine")
    assert server.orders == []


EVIL = """<!doctype html><title>evil</title><script>
async function attack(url) {
  const order = JSON.stringify({reason: "evil"});
  const tries = [
    ["v1/models/large/isolate", {method: "POST", mode: "no-cors", body: order}],
    ["v1/models/large/reset", {method: "POST", mode: "no-cors"}],
    ["v1/models/large/isolate", {method: "POST", mode: "no-cors", body: new Blob([order], {type: "text/plain"})}],
    ["v1/models/large/isolate", {method: "POST", headers: {"content-type": "application/json"}, body: order}],
    ["v1/level", {method: "PUT", headers: {"content-type": "application/json"}, body: '{"pin": "minimal"}'}],
    ["v1/cache", {method: "DELETE"}],
    ["v1/status", {}],
  ];
  const got = [];
  for (const [path, request] of tries) {
    try { got.push((await fetch(url + path, request)).type); } catch (error) { got.push("blocked"); }
  }
  return got;
}
</script><form method="post" enctype="text/plain"><input name='{"reason": "evil", "x": "' value='"}'></form>"""


@contextlib.contextmanager
def evil_site() -> Iterator[str]:
    """A page of another origin, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(EVIL.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_address[1]}/"
        site.shutdown()
        thread.join()


def test_a_page_of_another_site_gives_no_orders_through_the_operators_browser(page, server) -> None:
    with evil_site() as url:
        page.open(url)
        got = page.driver.execute_async_script("attack(arguments[0]).then(arguments[1])", server.url)
        assert got == ["opaque"] * 3 + ["blocked"] * 4
        page.script("document.forms[0].action = arguments[0]; document.forms[0].submit()", f"{server.url}v1/level")
        page.until(lambda: server.paths.count("/v1/level") >= 2, 5, "the form arrived")
    assert server.paths.count("/v1/models/large/isolate") >= 3
    assert server.orders == []


def test_a_keyboard_is_enough_to_give_an_order(console, server) -> None:
    console.script("document.querySelector('#order-reason').focus()")
    keys = ActionChains(console.driver)
    keys.send_keys("slow").send_keys(Keys.ENTER).perform()
    console.until_text(SAID, "large is isolated")
    ActionChains(console.driver).send_keys(Keys.TAB, Keys.TAB, Keys.ENTER).perform()
    console.until_text(SAID, "large was reset")
    assert server.orders == [("isolate", "large", "slow"), ("reset", "large")]


def test_what_an_operator_typed_and_chose_outlives_the_polls(console, server) -> None:
    console.one("#order-model option[value=small]").click()
    console.one("#order-reason").send_keys("half a sent")
    polls = len(server.paths)
    server.status["models"]["small"]["requests"] = 5
    console.until(lambda: len(server.paths) > polls + 4, 8, "two more polls")
    assert console.one("#order-model").get_property("value") == "small"
    assert console.one("#order-reason").get_property("value") == "half a sent"
    assert console.script("return document.activeElement.id") == "order-reason"


@pytest.mark.parametrize("width", [1280, 1000, 800, 360])
def test_what_a_selector_shows_is_not_cut_off(page, keyed, width) -> None:
    opened(page, keyed.url)
    page.screen(width, 844)
    wanted, room = page.script(
        """const level = document.getElementById("order-level"), { width } = level.getBoundingClientRect();
        level.style.width = "max-content";
        return [level.getBoundingClientRect().width, width];"""
    )
    assert wanted <= room


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (360, True)])
def test_the_forms_fit_the_screen_when_an_order_was_refused(page, keyed, shots, width, dark) -> None:
    opened(page, keyed.url)
    page.screen(width, 844, dark=dark)
    isolate(page)
    page.until_text(SAID, "Refused")
    page.until(lambda: said_is_in_sight(page), 2, "what became of the order is in sight")
    scrolled, seen = page.script(
        "const {scrollWidth, clientWidth} = document.documentElement; return [scrollWidth, clientWidth]"
    )
    assert scrolled == seen
    for control in page.all("#operate input, #operate select, #operate button"):
        if control.is_displayed():
            assert control.rect["height"] >= 36, control.get_attribute("outerHTML")
    page.save(shots / f"orders-{width}{'-dark' * dark}.png")
