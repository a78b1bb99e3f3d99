"""Debian's Chromium without a window, for tests that look at pages as a person does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


def open_browser() -> Iterator[webdriver.Chrome]:
    """A browser, closed afterwards; without one the test is skipped, or fails where CI is set."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        why = "chromium and chromedriver are not there; see tests/install-chromium.sh"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def set_screen(browser: webdriver.Chrome, width: int, scheme: str = "light") -> None:
    """Show pages on a screen of so many pixels, a phone below 500, by day or by night.

    Args:
        browser: that shows them.
        width: of the screen.
        scheme: ``light`` or ``dark``.
    """
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
