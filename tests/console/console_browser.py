"""A headless Chromium of its own for the tests, where the machine has one."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM = os.environ.get("SWITCHYARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = os.environ.get("SWITCHYARD_CHROMEDRIVER") or shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1280,900",
    "--host-resolver-rules=MAP rebound.test 127.0.0.1",
)


class Page:
    """What a person sees of the page, and does to it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Begin as a newcomer: a desktop screen in light mode, no messages from the page before."""
        self.driver.get("about:blank")
        self.screen(1280, 900)
        self.driver.get_log("browser")
        self.driver.get(url)

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def text(self, selector: str) -> str:
        """What the elements that match show, a line each; hidden ones show nothing."""
        with contextlib.suppress(StaleElementReferenceException):
            return "\n".join(found.text for found in self.all(selector))
        return ""

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def until(self, condition: Callable[[], Any], within_s: float, what: str) -> float:
        """Wait for it; the seconds it took."""
        started = time.monotonic()
        while not condition():
            waited_s = time.monotonic() - started
            assert waited_s < within_s, f"not within {within_s} s: {what}"
            time.sleep(0.05)
        return time.monotonic() - started

    def until_text(self, selector: str, wanted: str, within_s: float = 5) -> float:
        return self.until(lambda: wanted in self.text(selector), within_s, f"{wanted!r} in {selector}")

    def complaints(self) -> list[str]:
        """What the browser's console says at warning or worse since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}]

    def save(self, path: Path) -> None:
        """A picture of the whole page."""
        height = self.script("return document.documentElement.scrollHeight")
        width = self.script("return document.documentElement.clientWidth")
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A Chromium with a fresh profile that fetches nothing by itself; both its end and its files are seen to."""
    with tempfile.TemporaryDirectory(prefix="switchyard-chromium-") as profile:
        options = Options()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(executable_path=str(CHROMEDRIVER)))
        try:
            driver.set_page_load_timeout(20)
            yield Page(driver)
        finally:
            driver.quit()
