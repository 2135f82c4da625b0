"""The page of the admin server in Chromium, by way of `vestibule dashboard`, with a hundred sites."""

import shutil
import subprocess
import urllib.parse

import pytest

from conftest import BINARY, TOOLS, Edge, node

SITES = "".join(f'[sites."s{n}.example.org"]\nupstream = "http://127.0.0.1:1"\n' for n in range(99))

# Its service is down, and its certificate is for another name.
BROKEN = """
[sites."broken.example.org"]
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
upstream = {{ servers = ["http://127.0.0.1:2"], health = {{ path = "/health", interval = "1s" }} }}
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium cannot be installed here")
@pytest.mark.skipif(not (TOOLS / "npm/node_modules/playwright-core").exists(), reason="playwright-core cannot be installed here")
def test_the_page_shows_a_hundred_sites_and_asks_nobody_else(tmp_path):
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=other",
           "-addext", "subjectAltName=DNS:other.example.org", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *new], check=True, capture_output=True, cwd=tmp_path)
    edge = Edge(tmp_path, SITES + BROKEN.format(folder=tmp_path))
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
    assert (seen["sites"], seen["services"]) == (100, 2)
    assert [fix for fix in seen["fixes"] if "start the service" in fix] and [fix for fix in seen["fixes"] if "add a certificate for this name" in fix], seen["fixes"]
    assert seen["width"] == 360, "nothing is wider than a small screen"
    assert seen["first"] == "skip"
    assert "the configuration is the same" in seen["said"]
    assert seen["direction"] == "rtl"
