"""Clients that people use: matrix-js-sdk's discovery, and a browser that loads the well-known from another origin."""

import shutil

import pytest

from conftest import TOOLS, node


@pytest.mark.skipif(not (TOOLS / "npm/node_modules/matrix-js-sdk").exists(), reason="matrix-js-sdk cannot be installed here")
def test_matrix_js_sdk_discovers_the_homeserver(edge):
    found = node("discover.mjs", f"example.org:{edge.https}", root=edge.root)
    assert found["m.homeserver"]["state"] == "SUCCESS", found
    assert found["m.homeserver"]["base_url"] == edge.url("matrix.example.org")


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium cannot be installed here")
@pytest.mark.skipif(not (TOOLS / "npm/node_modules/playwright-core").exists(), reason="playwright-core cannot be installed here")
def test_a_browser_loads_the_well_known_from_another_origin(edge):
    seen = node("browser.mjs", edge.https, root=edge.root)
    assert seen["client"]["m.homeserver"]["base_url"] == edge.url("matrix.example.org")
    assert seen["support"] == 404, "an error can be read as well"
    assert seen["login"] == "M_UNRECOGNIZED", "and so can an error of the homeserver's name"
    assert seen["socket"] == "hello"
