"""The strict mode itself: what it makes of a test that is skipped."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="pebble cannot be had here")
def test_marked():
    pass

@pytest.fixture
def engine():
    pytest.skip("no Docker engine runs")

def test_of_a_fixture(engine):
    pass

def test_of_something_else():
    pytest.skip("Synapse judges the token itself")

@pytest.mark.xfail(reason="known")
def test_known():
    raise AssertionError

def test_fine():
    pass
"""


def outcome(folder, mode):
    (folder / "test_sample.py").write_text(TESTS)
    environment = {**os.environ, "VESTIBULE_TESTS": mode, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "strict", "--rootdir", folder, folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    return done.returncode, done.stdout


def test_a_skip_is_red_in_strict_mode_only(tmp_path):
    code, said = outcome(tmp_path, "")
    assert code == 0 and "3 skipped" in said, said
    code, said = outcome(tmp_path, "strict")
    assert code == 1 and "1 passed, 1 skipped, 1 xfailed" in said, said
    assert "pebble cannot be had here (VESTIBULE_TESTS=strict allows no skip)" in said and "no Docker engine runs" in said, said
