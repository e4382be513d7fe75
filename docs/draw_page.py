"""The picture of the service's page: `python docs/draw_page.py` asks a service that runs on the demo's bundle, and writes docs/page.png
(or the file named after it). Needs Chromium, ChromeDriver and Selenium."""

from __future__ import annotations

import sys
import time
from io import BytesIO
from pathlib import Path
from shutil import which

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

URL = "http://127.0.0.1:8000"
WIDTH, COLOURS = 1180, 64
HISTORY = (  # the last that user u00042 of the demo took
    "The Winter Ambulance",
    "The Hidden Wizard",
    "The Borrowed Stethoscope",
)


def click_together(driver: webdriver.Chrome) -> None:
    search = driver.find_element("id", "search")
    for number, title in enumerate(HISTORY, 1):
        search.clear()
        search.send_keys(title)
        hit = WebDriverWait(driver, 20).until(lambda _, title=title: hit_of(driver, title))
        hit.click()
        said = f"{number} item{'' if number == 1 else 's'} in the history"
        WebDriverWait(driver, 20).until(lambda _, said=said: said in driver.find_element("id", "status").text)


def hit_of(driver: webdriver.Chrome, title: str) -> webdriver.remote.webelement.WebElement | None:
    hits = driver.find_elements("css selector", "#hits button")
    return hits[0] if len(hits) == 1 and hits[0].text.startswith(title) else None


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("page.png")
    options = webdriver.ChromeOptions()
    options.binary_location = which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    with webdriver.Chrome(options, webdriver.ChromeService(which("chromedriver"))) as driver:
        driver.set_window_size(WIDTH, 900)
        driver.get(URL)
        click_together(driver)
        size = {"width": WIDTH, "height": driver.execute_script("return document.body.scrollHeight")}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"deviceScaleFactor": 1, "mobile": False})
        time.sleep(0.5)  # until it is drawn in its new size
        picture = Image.open(BytesIO(driver.get_screenshot_as_png()))
    picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
