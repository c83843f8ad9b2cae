"""Notebooks with panels in a real browser.

Every cell runs, controls change the picture, and the console stays clean.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import Smoke

from oasis_lib.study import NOTEBOOKS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]
SETTINGS = {  # nothing is fetched from anywhere, and cells out of sight exist
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "extensionmanager-extension/plugin": {"enabled": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.width ? canvas.toDataURL() : "";
}"""
PANELS = 3
MINUTES = 60_000  # in Playwright's milliseconds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the smoke study may be a part of it
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
]


@contextmanager
def lab(folder: Path, notebook: str) -> Iterator[str]:
    """JupyterLab on a free port, with settings of its own; gives its address, ends it afterwards."""
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        await_server(f"{address}/api/status?token={token}", server, folder / "lab.log")
        yield f"{address}/lab/tree/{notebook}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def await_server(address: str, server: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    begun = time.time()
    while time.time() - begun < seconds and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def copy_with(parameters: dict[str, str], target: Path) -> None:
    """The notebook as it is, but for the values of some parameters."""
    notebook = nbformat.read(NOTEBOOKS / target.name, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    nbformat.write(notebook, target)


def changed(picture, before: str, page) -> bool:
    """Whether the picture is another one within some seconds."""
    for _ in range(100):
        if picture.evaluate(PIXELS) not in ("", before):
            return True
        page.wait_for_timeout(100)
    return False


@contextmanager
def ran(name: str, last_words: str, smoke: Smoke, folder: Path) -> Iterator[Any]:
    """A notebook over the smoke run, all of it run in the browser.

    When its test is through, nothing may have complained.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install -e .[test])"
    )
    copy_with({"profile": "smoke", "run": str(smoke.folder), "cohort": str(smoke.cohort)}, folder / f"{name}.ipynb")
    with lab(folder, name) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        errors = []
        page.on("pageerror", lambda error: errors.append(f"page: {error}"))
        page.on("console", lambda said: errors.append(f"console: {said.text}") if said.type == "error" else None)
        page.goto(address)
        page.locator(".jp-Notebook").wait_for(timeout=2 * MINUTES)
        page.get_by_text("Python 3 (ipykernel) | Idle").or_(page.get_by_title("Python 3")).first.wait_for(
            timeout=2 * MINUTES
        )
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".jp-OutputArea-output li", has_text=last_words).first.wait_for(timeout=4 * MINUTES)
        yield page
        page.screenshot(path=folder / "lab.png")
        assert page.locator(".oasis-trouble").count() == 0
        assert page.locator(".jp-mod-error, [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert errors == []
        browser.close()


def test_panels_in_a_browser(smoke, tmp_path):
    with ran("03_codebook", "tokens are in use; the perplexity is", smoke, tmp_path) as page:
        panels = page.locator(".oasis-panel")
        assert panels.count() == PANELS
        for panel in panels.all():
            panel.scroll_into_view_if_needed()
            picture, sliders = panel.locator("img.oasis-picture"), panel.locator(".noUi-handle")
            assert sliders.count() > 0
            for slider in sliders.all():
                before = picture.evaluate(PIXELS)
                slider.press("ArrowRight")  # with the keyboard: it has to work too
                assert changed(picture, before, page), f"a slider does nothing in {panel.inner_text()[:60]!r}"


def test_generator_and_painter_in_a_browser(smoke, tmp_path):
    with ran("05_generation", "Sampling setting chosen on validation subjects", smoke, tmp_path) as page:
        panels = page.locator(".oasis-panel")
        assert panels.count() == 2
        for panel, label in zip(panels.all(), ("Draw", "Fill in")):
            panel.scroll_into_view_if_needed()
            picture, slice_index = panel.locator("img.oasis-picture"), panel.locator(".noUi-handle").first
            for act in (
                lambda slice_index=slice_index: slice_index.press("ArrowRight"),
                panel.get_by_role("button", name=label).click,
            ):
                before = picture.evaluate(PIXELS)
                act()
                assert changed(picture, before, page), f"{label}: nothing happens in {panel.inner_text()[:60]!r}"
