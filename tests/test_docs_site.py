"""The documentation as a site, in a browser that opens its files from the disk."""

import os
import subprocess
import sys

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import set_screen
from tests.conftest import REPOSITORY

#: Headings of pages of each kind, by their files.
PAGES = {
    "index.html": "cosmos-hpc",
    "settings.html": "Settings",
    "api/cosmos_hpc.html": "cosmos_hpc",
    "architecture.html": "Architecture",
}
#: Elements that stick out of the screen, but for those in something that scrolls or cuts.
STICKS_OUT = """
const width = document.documentElement.clientWidth;
const inside = e => e && (getComputedStyle(e).overflowX != "visible" || inside(e.parentElement));
return [...document.querySelectorAll("article *")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && (box.right > width + 1 || box.left < -1) && !inside(e.parentElement);
}).map(e => e.outerHTML.slice(0, 200));
"""
#: What the style sheet puts before a value, and the heads of the tables that these stand for.
LABELS = """
return [2, 3, 4].map(n => document.querySelector(`td:nth-child(${n})`))
  .map(cell => getComputedStyle(cell, "::before").content)
"""
HEADS = "return [...document.querySelectorAll('th')].map(e => e.textContent.trim())"
NOT_LOADED = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
TOO_WIDE = "const e = document.documentElement; return e.scrollWidth - e.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_look_right(site, browser, width):
    set_screen(browser, width)
    for name, heading in PAGES.items():
        browser.get((site / name).as_uri())
        title = browser.find_element(By.TAG_NAME, "h1")
        assert title.is_displayed() and title.text.rstrip("¶") == heading
        assert browser.execute_script(NOT_LOADED) == [], name
        assert browser.execute_script(TOO_WIDE) <= 0, name
        assert browser.execute_script(STICKS_OUT) == [], name
        _check_navigation(browser, width, "Home" if name == "index.html" else heading)
        assert browser.get_log("browser") == [], name
    assert browser.execute_script("return document.images.length") > 0  # of the last one


def _check_navigation(browser, width, entry):
    """The sections and the page's own entry are seen; on a phone behind a button."""
    if width < 500:
        browser.find_element(By.CSS_SELECTOR, "label.md-header__button[for=__drawer]").click()
    else:
        tabs = [link.text for link in browser.find_elements(By.CSS_SELECTOR, ".md-tabs__link")]
        assert tabs == ["Home", "Use", "Examples", "Reference", "Python", "Develop"]
    listed = browser.find_element(By.CSS_SELECTOR, ".md-nav--primary")
    # It slides in.
    WebDriverWait(browser, 30).until(lambda _: entry in listed.text.splitlines())


def test_a_setting_is_explained_on_a_phone(site, browser):
    """A table would have the explanations beside the screen."""
    set_screen(browser, 390)
    browser.get((site / "settings.html").as_uri())
    name, *_, explanation = browser.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")[:5]
    assert name.text == "name" and explanation.text.startswith("Name of the recipe")
    assert explanation.rect["y"] > name.rect["y"]
    assert explanation.rect["x"] + explanation.rect["width"] <= 390
    labels = browser.execute_script(LABELS)
    heads = browser.execute_script(HEADS)
    assert labels == [f'"{head}: "' for head in heads[1:4]]
    # All tables of the page have these columns.
    assert heads == heads[:5] * (len(heads) // 5)


def test_the_search_finds_a_setting(site, browser):
    set_screen(browser, 1280)
    browser.get((site / "index.html").as_uri())
    browser.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("learning_rate")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(e => e.href)"
    links = WebDriverWait(browser, 60).until(lambda _: browser.execute_script(found))
    assert any(link.startswith((site / "settings.html").as_uri()) for link in links), links
    assert browser.get_log("browser") == []
