"""The strict mode of the tests, `VESTIBULE_TESTS=strict`: a test that is skipped is a failure, since it has tested nothing."""

import os

import pytest

STRICT = os.environ.get("VESTIBULE_TESTS") == "strict"

# Skips for a reason other than a component that is not here.
NOT_A_COMPONENT = ("Synapse judges the token itself",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(words in reason for words in NOT_A_COMPONENT):
            report.outcome, report.longrepr = "failed", f"{reason} (VESTIBULE_TESTS=strict allows no skip)"
    return report
