"""A headless Chromium that asks nobody but our servers; for tests, and to look at what people see."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def logged_in(page: Page, password: str) -> Page:
    """Pages of Prefect's UI know the password from here on, as once a person has typed it."""
    page.add_init_script(f"localStorage.setItem('prefect-password', btoa({json.dumps(password)}))")
    return page


@contextlib.contextmanager
def page(width: int = 1300, height: int = 1000) -> Iterator[Page]:
    """An empty page. Skips the test where no Chromium is installed; CI installs one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: install Debian's `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()
