"""Certificates from a real ACME server (pebble)."""

import json
import re
import subprocess
import time

import pytest

from acme import BINARY, HOSTS, Edge, Pebble, broken, free_port, needs_pebble, stage, wait_for  # noqa: F401

pytestmark = needs_pebble


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_four_names_get_their_certificates_by_each_challenge(stage, kind):
    ca, edge = stage(more=f'challenges = ["{kind}"]')
    wait_for("certificates", edge.has_all, 60)
    assert ca.count("Issued certificate serial") == 4
    for mode, path in ((0o700, "edge/state"), (0o600, "edge/state/certificates/example.org.json")):
        assert (ca.folder / path).stat().st_mode & 0o777 == mode
    # A restart orders nothing.
    edge.stop()
    edge.start()
    assert edge.has_all()
    time.sleep(1)
    assert ca.count("Issued certificate serial") == 4


@pytest.mark.parametrize("blocked", ["http-01", "tls-alpn-01"])
def test_the_other_challenge_is_tried(stage, blocked):
    ca, edge = stage(blocked=blocked)
    wait_for("certificates", edge.has_all, 90)


def test_a_failure_explains_itself_and_holds_up_nobody(stage):
    ca, edge = stage(hosts=[], more='challenges = ["http-01"]\n[sites."first.example.org"]\nredirect = "https://example.org"')
    ca.leads_elsewhere("bad.example.org")
    config = edge.folder / "vestibule.toml"
    sites = [f'[sites."{host}".routes]\n"/" = {{ respond = "x" }}\n' for host in ("example.org", "jwt.example.org", "bad.example.org")]
    config.write_text(config.read_text() + "".join(sites))
    wait_for("the good ones", lambda: edge.has_all(["first.example.org", "example.org", "jwt.example.org"]), 60)
    wait_for("the reason", lambda: edge.status()["bad.example.org"]["failures"] > 0, 60)
    error = edge.status()["bad.example.org"]["last_error"]
    assert "127.0.0.2" in error and "no request for the challenge reached us" in error, error
    assert edge.served("bad.example.org") is None


def test_a_certificate_is_renewed_by_hand(stage):
    ca, edge = stage(hosts=["example.org"])
    wait_for("a certificate", lambda: edge.served("example.org"), 60)
    first = edge.served("example.org")
    command = [BINARY, "--config", edge.folder / "vestibule.toml", "renew"]
    assert subprocess.run([*command, "example.org"], capture_output=True).returncode == 0
    wait_for("another certificate", lambda: edge.served("example.org") != first, 60)
    assert subprocess.run([*command, "other.example.org"], capture_output=True).returncode == 1


def test_what_our_listeners_saw_is_told(stage):
    ca, edge = stage(hosts=["example.org"], blocked="http-01", more='challenges = ["http-01"]')
    wait_for("the reason", lambda: edge.status()["example.org"]["failures"] > 0, 90)
    assert "no request for the challenge reached us" in edge.status()["example.org"]["last_error"]


def test_certificates_of_ninety_seconds_are_renewed_under_load(stage):
    ca, edge = stage(hosts=["example.org"], lifetime=30)
    wait_for("a certificate", lambda: edge.served("example.org"), 60)
    first, failed, seen = edge.served("example.org"), 0, set()
    until = time.monotonic() + 40
    while time.monotonic() < until:
        now = edge.served("example.org")
        failed += now is None
        seen.add(now)
        time.sleep(0.05)
    assert failed == 0 and len(seen - {first}) >= 1, (failed, len(seen), edge.log()[-2000:])


def test_a_ca_that_rejects_most_nonces_is_outlasted(stage):
    ca, edge = stage(hosts=["example.org"], nonce_reject=60)
    wait_for("a certificate", lambda: edge.served("example.org"), 120)


def test_a_profile_that_is_not_offered_is_named_with_those_that_are(stage):
    ca, edge = stage(hosts=["example.org"], more='profile = "shortlived"')
    said = lambda: edge.status()["example.org"]["last_error"] or ""
    wait_for("the reason", lambda: re.search("no profile `shortlived`; it has: .*default", said()), 60)
    assert ca.count("Added order") == 0


def test_a_profile_that_is_offered_is_asked_for_and_its_six_days_are_right(stage):
    profiles = {"default": {"description": "ninety days", "validityPeriod": 90 * 86400},
                "shortlived": {"description": "six days", "validityPeriod": 6 * 86400}}
    ca, edge = stage(hosts=["example.org"], more='profile = "shortlived"', profiles=profiles)
    wait_for("a certificate", lambda: edge.served("example.org"), 60)
    wait_for("the plan", lambda: edge.status()["example.org"]["next"], 30)
    stamp = lambda days: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 86400))
    status = edge.status()["example.org"]
    assert stamp(5.9) < status["not_after"] < stamp(6.1) and stamp(2) < status["next"] < stamp(5.8), status


def test_two_processes_on_one_storage_place_one_order(stage):
    ca, edge = stage(hosts=["example.org"])
    other = subprocess.Popen([BINARY, "run", "--config", edge.folder / "vestibule.toml"], stderr=subprocess.DEVNULL)
    try:
        wait_for("a certificate", lambda: edge.served("example.org"), 60)
        time.sleep(3)
        assert ca.count("Issued certificate serial") == 1
    finally:
        other.kill()
        other.wait()


def test_damage_is_set_aside_and_an_outage_serves_what_there_is(stage):
    ca, edge = stage(hosts=["example.org", "jwt.example.org"])
    wait_for("certificates", lambda: edge.has_all(["example.org", "jwt.example.org"]), 60)
    edge.stop()
    folder = edge.folder / "state/certificates"
    (folder / "jwt.example.org.json").write_text("{ broken")
    ca.stop()
    edge.start()
    assert edge.served("example.org"), "served while the CA is away"
    wait_for("the reason", lambda: edge.status()["jwt.example.org"]["failures"] > 0, 60)
    assert list(folder.glob("jwt.example.org.json.damaged-*"))


def test_a_storage_that_cannot_be_written_orders_nothing(tmp_path):
    ports = (free_port(), free_port())
    ca = Pebble(tmp_path, *ports)
    folder = tmp_path / "edge"
    folder.mkdir()
    (folder / "state").write_text("this is a file")
    edge = Edge(folder, ca.directory, ports, ["example.org"], tmp_path / "ca.pem")
    try:
        wait_for("the reason", lambda: "nothing is ordered" in edge.log(), 30)
        assert ca.count("Added order") == 0
    finally:
        edge.stop()
        ca.stop()


@pytest.mark.parametrize("answer, words", [
    ((500, {"Content-Type": "text/html"}, b"<html>oops</html>"), "HTTP 500"),
    ((200, {"Content-Type": "text/html"}, b"<html>captive portal</html>"), "is no ACME"),
    ((429, {"Retry-After": "3600", "Content-Type": "application/problem+json"},
      b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}'), "HTTP 429"),
])
def test_a_broken_first_ca_is_followed_by_the_next(tmp_path, answer, words):
    directory, shutdown = broken(answer)
    edge = Edge(tmp_path / "edge", directory, (free_port(), free_port()), ["example.org"])
    try:
        wait_for("the reason", lambda: edge.status()["example.org"]["failures"] > 0, 60)
        status = edge.status()["example.org"]
        assert words in status["last_error"], status
        if answer[0] == 429:
            before = json.loads((edge.folder / "state/certificates/example.org.json").read_text())["not_before"]
            assert before > time.time() + 3000, "Retry-After is kept across restarts"
    finally:
        edge.stop()
        shutdown()
