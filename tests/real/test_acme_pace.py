"""Certificates under wrong clocks, for many names, with several processes, and with CAs that misbehave."""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import threading
import time

import pytest

from acme import BINARY, Edge, Pebble, broken, free_port, needs_pebble, stage, wait_for  # noqa: F401

pytestmark = needs_pebble

HOST = "matrix.example.org"
LIMITED = (429, {"Retry-After": "3600", "Content-Type": "application/problem+json"},
           b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders"}')


# Numbers


def test_sixty_names_share_one_directory_a_few_nonces_and_a_few_connections(stage):
    """ACME_NAMES=500 for the figures in tests/README.md."""
    names = int(os.environ.get("ACME_NAMES", 60))
    hosts = [f"n{n}.example.org" for n in range(names)]
    ca, edge = stage(hosts=hosts, between={})
    began = time.monotonic()
    wait_for("the first order", lambda: ca.between.count("/order-plz"), 30)
    time.sleep(1)
    assert ca.between.count("/order-plz") <= 8, "the first second sees a few orders only"
    wait_for("certificates", lambda: edge.has_all(hosts), 5 * names)
    print(f"{names} names: {len(ca.between.seen)} requests, {ca.between.connections} connections, {time.monotonic() - began:.0f} s")
    assert ca.between.count("/order-plz") == names and ca.count("Issued certificate serial") == names
    assert ca.between.count("/dir") == 1 and ca.between.count("/nonce-plz") <= 8
    # Idle ones are closed after a while, and a run of minutes opens some again.
    assert ca.between.connections <= max(12, names // 12), ca.between.connections


def test_a_limit_holds_every_name_and_every_process(stage):
    hosts = [f"n{n}.example.org" for n in range(12)]
    ca, edge = stage(hosts=hosts, between={"/order-plz": lambda _: LIMITED})
    wait_for("the reasons", lambda: all(edge.status()[host]["failures"] for host in hosts), 60)
    assert ca.between.count("/order-plz") <= 4, ca.between.seen
    assert all("too many new orders" in edge.status()[host]["last_error"] for host in hosts)
    before = len(ca.between.seen)
    edge.stop()
    edge.start()
    time.sleep(3)
    assert len(ca.between.seen) == before, "the limit is kept by the next process"


def test_progress_is_told_while_an_order_goes_on_and_renew_joins_it(stage):
    ca, edge = stage(hosts=[HOST], slow=8, between={})
    wait_for("the step", lambda: "waits for the CA to validate by" in (edge.status()[HOST]["progress"] or ""), 60)
    subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "renew", HOST], check=True, capture_output=True)
    wait_for("a certificate", lambda: edge.served(HOST), 90)
    wait_for("rest", lambda: edge.status()[HOST]["progress"] is None, 10)
    assert "waits for the CA to issue" in edge.log()
    # The window of the certificate is asked for once the order is over, and no other order is placed before that.
    wait_for("the window", lambda: edge.status()[HOST]["next"], 30)
    assert ca.between.count("/order-plz") == 1, ca.between.seen


# Clocks

has_faketime = shutil.which("faketime") is not None


@pytest.mark.skipif(not has_faketime, reason="faketime cannot be had here")
def test_a_clock_that_is_ahead_orders_once_and_is_told(stage):
    """What is issued has expired by this clock; a clock further behind would not trust the directory's own certificate."""
    moved = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", "+100d"]
    ca, edge = stage(hosts=[HOST], within=moved, between={})
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    time.sleep(15)
    assert ca.between.count("/order-plz") == 1, ca.between.seen
    assert "ahead of the CA's" in edge.log()
    status = subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "status"], capture_output=True, text=True).stdout
    assert "this machine's clock is" in status, status
    assert "due or over by this machine's clock" in edge.status()[HOST]["last_error"]
    doctor = [*moved, BINARY, "--config", edge.folder / "vestibule.toml", "doctor", "--json"]
    findings = json.loads(subprocess.run(doctor, capture_output=True, text=True).stdout)["findings"]
    [clock] = [finding for finding in findings if finding["id"].startswith("ca.clock")]
    assert clock["verdict"] == "fail" and "100 d ahead of the CA's" in clock["fact"], clock


# Company


def get(port, host, path, tls=False):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if tls:
        raw.connect()
        raw.sock = context.wrap_socket(raw.sock, server_hostname=host)
    raw.request("GET", path, headers={"Host": host})
    answer = raw.getresponse()
    return answer.status, answer.read().decode()


def test_every_token_of_our_account_is_answered_over_http_and_https(stage):
    ca, edge = stage(hosts=[HOST])
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    path = "/.well-known/acme-challenge/a-token-of-another-process"
    status, body = get(edge.http, HOST, path)
    assert status == 200 and body.startswith("a-token-of-another-process.") and len(body) > 60
    assert get(edge.https, HOST, path, tls=True) == (200, body)
    assert get(edge.http, HOST, "/.well-known/acme-challenge/not%20a%20token")[0] != 200


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_process_that_orders_nothing_shows_the_proofs_of_one_that_does(stage, tmp_path, kind):
    """The CA comes to the second process: the ports of the first lead nowhere."""
    ca, first = stage(hosts=[HOST], more=f'challenges = ["{kind}"]', blocked=kind)
    first.stop()
    shutil.rmtree(first.folder / "state")
    seen = json.loads((tmp_path / "pebble.json").read_text())["pebble"]
    ports = (seen["httpPort"] if kind == "http-01" else free_port(), seen["tlsPort"] if kind == "tls-alpn-01" else free_port())
    text = (first.folder / "vestibule.toml").read_text()
    # The second one holds nothing up: its CA is down, so that it orders nothing itself.
    other = Edge(tmp_path / "other", "http://127.0.0.1:1/dir", ports, [HOST])
    other.stop()
    config = (other.folder / "vestibule.toml").read_text().replace(f"{other.folder}/state", f"{first.folder}/state")
    (other.folder / "vestibule.toml").write_text(config)
    other.start()
    try:
        wait_for("its failure", lambda: other.status()[HOST]["failures"], 30)
        stored = first.stored(HOST)
        stored.unlink()
        (first.folder / "vestibule.toml").write_text(text)
        first.start()
        wait_for("a certificate", lambda: first.served(HOST), 90)
        assert ca.count("Issued certificate serial") == 1
    finally:
        other.stop()


def test_an_answer_about_renewal_does_not_put_an_old_certificate_over_a_newer_one(stage):
    """Another process renews while the CA is asked about the certificate before."""
    newer, asked = [], threading.Event()

    def renewed_meanwhile(_):
        if newer and not asked.is_set():
            edge.stored(HOST).write_text(newer[0])
            asked.set()
        window = {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}
        return 200, {"Content-Type": "application/json"}, json.dumps({"suggestedWindow": window}).encode() if asked.is_set() else b"{}"

    ca, edge = stage(hosts=[HOST], between={"/draft-ietf-acme-ari": renewed_meanwhile, "/renewal": renewed_meanwhile})
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    first = edge.stored(HOST).read_text()
    edge.renew(HOST)
    wait_for("the newer one in the storage", lambda: json.loads(edge.stored(HOST).read_text())["chain"] != json.loads(first)["chain"], 10)
    newer_served = edge.served(HOST)
    edge.stop()
    newer.append(edge.stored(HOST).read_text())
    edge.stored(HOST).write_text(first)
    edge.start()
    assert asked.wait(30)
    wait_for("the newer certificate", lambda: edge.served(HOST) == newer_served, 30)
    assert json.loads(edge.stored(HOST).read_text())["chain"] == json.loads(newer[0])["chain"]
    assert ca.between.count("/order-plz") == 2, "the answer is about the old one"


# Judgement


def test_settings_belong_to_their_directory(tmp_path):
    """The first CA wants an external account that the second does not know, and has a profile of its own."""
    ports = (free_port(), free_port())
    directory, shutdown = broken((503, {}, b"busy"))
    ca = Pebble(tmp_path, *ports, profiles={"default": {"description": "the usual", "validityPeriod": 86400 * 90},
                                            "shortlived": {"description": "six days", "validityPeriod": 86400 * 6}})
    first = {"url": directory, "profile": "nothing", "eab_kid": "k", "eab_hmac_key": "YSBrZXkgb2YgdGhpcnR5LXR3byBieXRlcywgb3Igc28"}
    second = {"url": ca.directory, "profile": "shortlived", "ca_file": str(tmp_path / "ca.pem")}
    table = lambda one: "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) + " }"
    edge = Edge(tmp_path / "edge", "http://127.0.0.1:1/dir", ports, [HOST])
    edge.stop()
    config = edge.folder / "vestibule.toml"
    config.write_text(config.read_text().replace('"http://127.0.0.1:1/dir"', f"[{table(first)}, {table(second)}]"))
    shutil.rmtree(edge.folder / "state", ignore_errors=True)
    edge.start()
    try:
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        assert edge.status()[HOST]["not_after"] < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7 * 86400))
    finally:
        edge.stop()
        ca.stop()
        shutdown()


def test_an_account_that_the_ca_has_deactivated_is_replaced(stage):
    refused = threading.Event()
    problem = (403, {"Content-Type": "application/problem+json"},
               b'{"type":"urn:ietf:params:acme:error:unauthorized","detail":"Account is not valid, has status \\"deactivated\\""}')

    def once(_):
        if not refused.is_set():
            refused.set()
            return problem

    ca, edge = stage(hosts=[HOST], between={"/order-plz": once})
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    assert "has deactivated our account" in edge.log()
    assert ca.between.count("/sign-me-up") == 2 and list((edge.folder / "state/accounts").glob("*.deactivated-*"))


def test_a_ca_that_fails_while_it_validates_is_passed_over(tmp_path):
    ports = (free_port(), free_port())
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    failing, sound = Pebble(tmp_path / "one", *ports), Pebble(tmp_path / "two", *ports)
    from acme import Between
    between = Between(failing)
    between.hooks["/chalZ/"] = lambda _: (500, {"Content-Type": "application/problem+json"},
                                         b'{"type":"urn:ietf:params:acme:error:serverInternal","detail":"oops"}')
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "one/ca.pem").read_text() + (tmp_path / "two/ca.pem").read_text())
    edge = Edge(tmp_path / "edge", [between.directory, sound.directory], ports, [HOST], both)
    try:
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        assert json.loads(edge.stored(HOST).read_text())["directory"] == sound.directory
    finally:
        for one in (edge, failing, sound):
            one.stop()
