"""The front door as subjects meet it: the driver opened in JupyterLab, in a real browser, and run by its menu."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import PROJECT, Smoke

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(not BROWSER, reason="no chromium here")]


@pytest.fixture
def lab(smoke: Smoke, tmp_path: Path):
    """JupyterLab on a copy of the driver that is set to the finished smoke run."""
    driver = json.loads((PROJECT / "driver.ipynb").read_text())
    chosen = {"profile": '"laptop"', "run": '"runs/latest"'}, {"profile": '"smoke"', "run": repr(str(smoke.folder))}
    text = "".join(driver["cells"][1]["source"])
    for name in chosen[0]:
        assert chosen[0][name] in text
        text = text.replace(chosen[0][name], chosen[1][name])
    driver["cells"][1]["source"] = text
    (tmp_path / "driver.ipynb").write_text(json.dumps(driver))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"--port={port}",
        f"--ServerApp.root_dir={tmp_path}",
        "--IdentityProvider.token=secret",
        "--no-browser",
        "--allow-root",
    ]
    env = os.environ | {"OASIS_DATA": str(smoke.data), "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter")}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *options], env=env, stdout=log, stderr=log)
        try:
            until = time.time() + 90
            while time.time() < until:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=secret", timeout=5)
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/lab/tree/driver.ipynb?token=secret"
        finally:
            server.terminate()
            server.wait(30)


def test_the_driver_runs_by_its_menu(lab: str, smoke: Smoke, tmp_path: Path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(lab, timeout=120_000)
        page.locator(".jp-Notebook").first.wait_for(timeout=120_000)
        page.locator('.jp-NotebookPanel-toolbar :text("Python 3")').first.wait_for(timeout=120_000)
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        saved = saved_outputs(page, tmp_path / "driver.ipynb")
        page.screenshot(path=tmp_path / "driver.png")
        browser.close()
    assert not [o for o in saved if o["output_type"] == "error"]
    printed = "".join("".join(o.get("text", "")) for o in saved)
    assert re.search(r"06_evaluation\s+done already", printed) and str(smoke.folder / "report.html") in printed
    (shown,) = ("".join(o["data"]["text/html"]) for o in saved if "text/html" in o.get("data", {}))
    assert shown.index("<table") < shown.index("<img") < shown.index("<details>"), "results, figures, the rest folded"


def saved_outputs(page, notebook: Path, seconds: float = 120) -> list[dict]:
    """Save until the last cell's outputs are in the file. The page itself leaves cells out that are not in view."""
    until = time.time() + seconds
    while time.time() < until:
        page.keyboard.press("Control+s")
        code = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
        if code[-1]["outputs"]:
            return [output for cell in code for output in cell["outputs"]]
        page.wait_for_timeout(1000)
    raise AssertionError(f"{notebook} was not saved with its outputs")
