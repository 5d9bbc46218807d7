"""The chat page as a user has it before them, in headless Chromium."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

SECONDS = 10
BUSY = "The model answers."
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@contextmanager
def headless_chromium(profile: Path) -> Iterator[Chrome]:
    """Start the Chromium of this machine; skips the test where there is none."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver found (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, Service(driver))
    browser.set_script_timeout(SECONDS)
    try:
        yield browser
    finally:
        browser.quit()


class ChatPage:
    """The page at ``url``, opened anew."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script("sessionStorage.clear()")
        browser.get_log("browser")
        browser.get(url)
        self.message = self.element("message")

    def element(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def elements(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition is met; elements may disappear meanwhile."""
        wait = WebDriverWait(self.browser, SECONDS, 0.02, [StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def choose(self, name: str, option: str) -> None:
        self.wait(lambda: self.element(name).find_elements(By.TAG_NAME, "option"))
        Select(self.element(name)).select_by_visible_text(option)

    def set(self, **settings: str | float) -> None:
        for name, value in settings.items():
            self.element(name.replace("_strings", "-strings")).send_keys(str(value))

    def send(self, *keys: str) -> None:
        """Type into the composer and press Enter, then wait until an answer or an error came."""
        self.message.send_keys(*keys, "\n")
        self.wait_until_done()

    def wait_until_done(self) -> None:
        self.wait(lambda: self.status != BUSY)

    def press(self, label: str) -> None:
        """Press the last button that is called so."""
        labelled = f"//button[normalize-space() = '{label}' or @aria-label = '{label}']"
        [*_, button] = self.browser.find_elements(By.XPATH, labelled)
        button.click()

    @property
    def status(self) -> str:
        """What a screen reader is told."""
        return self.element("status").get_property("textContent")

    @property
    def error(self) -> str:
        return self.element("error").text

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Who said what, by the page."""
        return [
            (
                turn.find_element(By.TAG_NAME, "h2").text,
                turn.find_element(By.CLASS_NAME, "text").get_property("textContent"),
            )
            for turn in self.elements("article")
        ]

    @property
    def answer(self) -> str:
        [*_, (who, text)] = self.turns
        assert who == "Model"
        return text

    @property
    def figures(self) -> str:
        """The line of figures below the last message, if there is one."""
        return "".join(element.text for element in self.elements(".figures")[-1:])
