"""The page of the admin server in Chromium, by way of `vestibule dashboard`, with a hundred sites."""

import shutil
import subprocess
import urllib.parse

import pytest

from conftest import BINARY, TOOLS, Edge, node

SITES = "".join(f'[sites."s{n}.example.org"]\nupstream = "http://127.0.0.1:1"\n' for n in range(100))


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium cannot be installed here")
@pytest.mark.skipif(not (TOOLS / "npm/node_modules/playwright-core").exists(), reason="playwright-core cannot be installed here")
def test_the_page_shows_a_hundred_sites_and_asks_nobody_else(tmp_path):
    edge = Edge(tmp_path, SITES)
    command = [BINARY, "--config", tmp_path / "vestibule.toml", "dashboard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dashboard:
        try:
            url = dashboard.stdout.readline().strip()
            seen = node("page.mjs", url, root=edge.root)
        finally:
            dashboard.terminate()
            edge.stop()
    assert seen["problems"] == []
    assert seen["hosts"] == [urllib.parse.urlsplit(url).netloc]
    assert (seen["sites"], seen["services"]) == (100, 1)
    assert seen["width"] == 360, "nothing is wider than a small screen"
    assert seen["first"] == "skip"
    assert "the configuration is the same" in seen["said"]
    assert seen["direction"] == "rtl"
