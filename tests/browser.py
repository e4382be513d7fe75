"""Chromium, driven as a user would: pages of a running service, what they ask for, and what the console says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from html_pages import BROWSERS

T = TypeVar("T")
SECONDS = 60  # for which a page may take to show what is waited for
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
BESIDES_THE_WIDTH = """return [...document.querySelectorAll("body *")].filter(
  (e) => e.getBoundingClientRect().right > innerWidth + 1 && e.getClientRects().length && !e.closest("svg"))
  .map((e) => e.tagName + "#" + e.id + "." + e.className)"""


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A Selenium driver; the test is skipped where it, Chromium or ChromeDriver is not installed. folder: for the browser's profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no page is opened")
    browser, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(f"chromedriver and one of {', '.join(BROWSERS)} are not both installed: no page is opened")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chrome:
        yield chrome


def wide(driver: Any, width: int, height: int = 900, scale: float = 1) -> None:
    """A window of its own is never narrower than 500 pixels; this one is."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def waited(driver: Any, seen: Callable[[], T]) -> T:
    """What `seen` gives once it is true."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, SECONDS, 0.05, (NoSuchElementException, StaleElementReferenceException))
    return wait.until(lambda _: seen())


def select(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    """Of all that match, at one moment, hidden letters too."""
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
    return driver.execute_script(script, selector)


def complaints(driver: Any) -> list[str]:
    """Errors of the console and what the content policy has stopped since the last call; answers below 500 are the service's sentences."""
    said = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    return [message for message in said if "responded with a status of 4" not in message]


def asked_urls(driver: Any) -> list[str]:
    """Every address that the page has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
