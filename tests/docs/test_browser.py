"""The built site in a browser: layout, links, search and console at two window sizes."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.markdown import ROOT

pytest.importorskip("mkdocstrings", reason="the documentation's packages are not installed")
pytest.importorskip("selenium", reason="drives the browser")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromium-driver on the PATH"
)

PAGES = (
    "index.html",
    "tutorials/first-meta-learner.html",
    "which-method.html",
    "how-to/drop-in.html",
    "methods/gsl.html",
    "results/omniglot-5w1s.html",
    "api/learners.html",
)
SIZES = ((1280, 900), (390, 844))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the built site, served from this process."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(build, cwd=ROOT, env=environment, check=True, timeout=120)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


def resize(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pages_fit_and_log_no_errors(site: str, browser: Any, width: int, height: int):
    resize(browser, width, height)
    for page in PAGES:
        browser.get(site + page)
        assert browser.execute_script("return innerWidth") == width, page
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width, page
        errors = [entry["message"] for entry in browser.get_log("browser")]
        assert not errors, page


def test_code_needs_no_scrolling_on_a_desktop(site: str, browser: Any):
    resize(browser, *SIZES[0])
    for page in PAGES:
        browser.get(site + page)
        wide = browser.execute_script(
            "return [...document.querySelectorAll('article pre > code')]"
            ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
        )
        assert not wide, page


def test_links_lead_to_pages_and_anchors(site: str, browser: Any):
    for page in PAGES:
        browser.get(site + page)
        links = browser.execute_script("return [...document.links].map(a => a.href)")
        assert any(link.startswith(site) for link in links), page
        for link in links:
            if link.startswith(site):
                address, _, anchor = link.partition("#")
                assert _has(address, anchor), f"{page}: {link}"


@functools.cache
def _read(address: str) -> str | None:
    try:
        with urllib.request.urlopen(address, timeout=10) as found:
            return str(found.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        error.close()
        return None


@functools.cache
def _has(address: str, anchor: str) -> bool:
    text = _read(address)
    return text is not None and (anchor in ("", "__skip") or f'id="{anchor}"' in text)


def test_search_finds_documentation_before_results(site: str, browser: Any):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, *SIZES[0])
    browser.get(site)
    field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    field.click()
    field.send_keys("Reptile")
    first = WebDriverWait(browser, 20).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, "a.md-search-result__link")
    )[0]
    path = str(first.get_attribute("href")).removeprefix(site)
    assert path.startswith(("methods/", "api/")), path
