"""Certificates from a real ACME server (pebble), and from one that misbehaves."""

import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import pytest

from conftest import BINARY, TOOLS, free_port, wait_for

PEBBLE = TOOLS / "pebble/usr/bin/pebble"
pytestmark = pytest.mark.skipif(not PEBBLE.exists(), reason="pebble 2.10 cannot be had here")

HOSTS = ["matrix.example.org", "jwt.example.org", "rtc.example.org", "example.org"]


def make_authority(folder):
    """A CA for the directory's own TLS, and a certificate for localhost."""
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=directory CA")
    run(*new, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "localhost.key", "-out", "localhost.pem", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")


class Pebble:
    """pebble and its DNS, in which every name is this machine."""

    def __init__(self, folder, http_port, tls_port, lifetime=90 * 86400, nonce_reject=0, **more):
        self.folder = folder
        make_authority(folder)
        self.port, self.management, dns, self.dns_management = (free_port() for _ in range(4))
        config = {
            "listenAddress": f"127.0.0.1:{self.port}", "managementListenAddress": f"127.0.0.1:{self.management}",
            "certificate": "localhost.pem", "privateKey": "localhost.key", "httpPort": http_port, "tlsPort": tls_port,
            "retryAfter": {"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "the usual", "validityPeriod": lifetime}}, **more,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        self.dns = subprocess.Popen(
            [PEBBLE.with_name("pebble-challtestsrv"), "-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-dnsserver", f"127.0.0.1:{dns}",
             "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-management", f"127.0.0.1:{self.dns_management}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.out = open(folder / "pebble.out", "w")
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": str(nonce_reject), "PEBBLE_AUTHZREUSE": "0"}
        self.process = subprocess.Popen([PEBBLE, "-config", "pebble.json", "-dnsserver", f"127.0.0.1:{dns}"],
                                        cwd=folder, stdout=self.out, stderr=self.out, env=environment)
        self.context = ssl.create_default_context(cafile=folder / "ca.pem")
        wait_for("pebble", lambda: urllib.request.urlopen(self.directory, context=self.context, timeout=2).status == 200, 20)

    @property
    def directory(self):
        return f"https://localhost:{self.port}/dir"

    def count(self, what):
        return (self.folder / "pebble.out").read_text().count(what)

    def leads_elsewhere(self, host):
        body = json.dumps({"host": f"{host}.", "addresses": ["127.0.0.2"]}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.dns_management}/add-a", body, timeout=5)

    def stop(self):
        for process in (self.process, self.dns):
            process.kill()
            process.wait()


class Edge:
    def __init__(self, folder, directory, ports, hosts=HOSTS, ca=None, more=""):
        self.folder, (self.http, self.https) = folder, ports
        folder.mkdir(exist_ok=True)
        sites = "\n".join(f'[sites."{host}".routes]\n"/" = {{ respond = "{host}" }}' for host in hosts)
        ca_file = f'ca_file = "{ca}"' if ca else ""
        (folder / "vestibule.toml").write_text(f"""
[listen]
http = ["127.0.0.1:{self.http}"]
https = ["127.0.0.1:{self.https}"]
[storage]
path = "{folder}/state"
[admin]
listen = "unix:{folder}/admin.sock"
[acme]
email = "admin@example.org"
directory = {json.dumps(directory)}
{ca_file}
{more}
{sites}
""")
        self.start()

    def start(self):
        self.err = self.folder / f"edge.err.{time.monotonic_ns()}"
        self.process = subprocess.Popen([BINARY, "run", "--config", self.folder / "vestibule.toml"], stderr=open(self.err, "w"))
        wait_for("the edge", lambda: self.process.poll() is None and '"ready"' in self.err.read_text(), 20)

    def served(self, host):
        """The certificate for a name, or nothing."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.https), timeout=5) as raw:
                with context.wrap_socket(raw, server_hostname=host) as tls:
                    return tls.getpeercert(binary_form=True)
        except (ssl.SSLError, ConnectionError):
            return None

    def has_all(self, hosts=HOSTS):
        return all(self.served(host) for host in hosts)

    def log(self):
        return self.err.read_text()

    def status(self):
        done = subprocess.run([BINARY, "--config", self.folder / "vestibule.toml", "status", "--json"], capture_output=True, text=True)
        return {one["host"]: one for one in json.loads(done.stdout)["certificates"]}

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(15)


@pytest.fixture
def stage(tmp_path):
    """Ports first, since pebble has to know where to look."""
    started = []

    def build(hosts=HOSTS, more="", blocked=None, **pebble):
        ports = (free_port(), free_port())
        seen = (free_port() if blocked == "http-01" else ports[0], free_port() if blocked == "tls-alpn-01" else ports[1])
        ca = Pebble(tmp_path, *seen, **pebble)
        started.append(ca)
        edge = Edge(tmp_path / "edge", ca.directory, ports, hosts, tmp_path / "ca.pem", more)
        started.append(edge)
        return ca, edge

    yield build
    for one in reversed(started):
        one.stop()


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
    ca, edge = stage(blocked=blocked, hosts=["example.org"])
    wait_for("a certificate", lambda: edge.served("example.org"), 60)


def test_a_failure_explains_itself_and_holds_up_nobody(stage):
    ca, edge = stage(hosts=[], more='challenges = ["http-01"]\n[sites."first.example.org"]\nredirect = "https://example.org"')
    ca.leads_elsewhere("bad.example.org")
    config = edge.folder / "vestibule.toml"
    sites = [f'[sites."{host}".routes]\n"/" = {{ respond = "x" }}\n' for host in ("example.org", "bad.example.org")]
    config.write_text(config.read_text() + "".join(sites))
    wait_for("the good ones", lambda: edge.has_all(["first.example.org", "example.org"]), 60)
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
    wait_for("the reason", lambda: edge.status()["example.org"]["failures"] > 0, 60)
    assert re.search("no profile `shortlived`; it has: .*default", edge.status()["example.org"]["last_error"])
    assert ca.count("Added order") == 0


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


class Broken(http.server.BaseHTTPRequestHandler):
    """A CA that answers everything the same way."""

    answer = (500, {}, b"oops")

    def do_GET(self):
        status, fields, body = self.answer
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("answer, words", [
    ((500, {"Content-Type": "text/html"}, b"<html>oops</html>"), "HTTP 500"),
    ((200, {"Content-Type": "text/html"}, b"<html>captive portal</html>"), "is no ACME"),
    ((429, {"Retry-After": "3600", "Content-Type": "application/problem+json"},
      b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}'), "HTTP 429"),
])
def test_a_broken_first_ca_is_followed_by_the_next(tmp_path, answer, words):
    handler = type("Handler", (Broken,), {"answer": answer})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    edge = Edge(tmp_path / "edge", f"http://127.0.0.1:{server.server_port}/dir", (free_port(), free_port()), ["example.org"])
    try:
        wait_for("the reason", lambda: edge.status()["example.org"]["failures"] > 0, 60)
        status = edge.status()["example.org"]
        assert words in status["last_error"], status
        if answer[0] == 429:
            before = json.loads((edge.folder / "state/certificates/example.org.json").read_text())["not_before"]
            assert before > time.time() + 3000, "Retry-After is kept across restarts"
    finally:
        edge.stop()
        server.shutdown()
