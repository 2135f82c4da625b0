"""A real CA (pebble), one that misbehaves, one that stands between, and an edge that orders from them."""

import http.client
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import pytest

from conftest import BINARY, ROOT, TOOLS, free_port, wait_for  # noqa: F401

PEBBLE = TOOLS / "pebble/usr/bin/pebble"
needs_pebble = pytest.mark.skipif(not PEBBLE.exists(), reason="pebble 2.10 cannot be had here")

HOSTS = ["matrix.example.org", "jwt.example.org", "rtc.example.org", "example.org"]


def make_authority(folder):
    """A CA for the directory's own TLS, and a certificate for localhost."""
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "400"]
    run(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=directory CA")
    run(*new, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "localhost.key", "-out", "localhost.pem", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,DNS:*.api.letsencrypt.org,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")


class Pebble:
    """pebble and its DNS, in which every name is this machine."""

    def __init__(self, folder, http_port, tls_port, lifetime=90 * 86400, nonce_reject=0, slow=0, resolver=None, **more):
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
        self.environment = {**os.environ, "PEBBLE_WFE_NONCEREJECT": str(nonce_reject), "PEBBLE_AUTHZREUSE": "0"}
        # How long it takes to validate, in seconds: a number up to this, or none at all.
        self.environment |= {"PEBBLE_VA_SLEEPTIME": str(slow)} if slow else {"PEBBLE_VA_NOSLEEP": "1"}
        self.command = [PEBBLE, "-config", "pebble.json", "-dnsserver", resolver or f"127.0.0.1:{dns}"]
        self.dns_port = dns
        self.context = ssl.create_default_context(cafile=folder / "ca.pem")
        self.start()

    def start(self):
        """It keeps nothing: a new start has forgotten every account, order and certificate."""
        self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=self.out, stderr=self.out, env=self.environment)
        wait_for("pebble", lambda: urllib.request.urlopen(self.directory, context=self.context, timeout=2).status == 200, 20)

    def forget(self):
        self.process.kill()
        self.process.wait()
        self.start()

    @property
    def directory(self):
        return f"https://localhost:{self.port}/dir"

    def count(self, what):
        return (self.folder / "pebble.out").read_text().count(what)

    def leads_elsewhere(self, host):
        body = json.dumps({"host": f"{host}.", "addresses": ["127.0.0.2"]}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.dns_management}/add-a", body, timeout=5)

    def set_text(self, name, value):
        """A TXT record, as an operator sets it by hand."""
        body = json.dumps({"host": f"{name}.", "value": value}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.dns_management}/set-txt", body, timeout=5)

    def clear_text(self, name):
        body = json.dumps({"host": f"{name}."}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.dns_management}/clear-txt", body, timeout=5)

    def suggest(self, certificate, window):
        """What it answers from now on when asked when to renew a certificate (RFC 9773)."""
        stamp = lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        answer = {"suggestedWindow": {"start": stamp(window[0]), "end": stamp(window[1])}}
        body = {"certificate": ssl.DER_cert_to_PEM_cert(certificate), "ariResponse": json.dumps(answer)}
        request = urllib.request.Request(f"https://localhost:{self.management}/set-renewal-info/", json.dumps(body).encode())
        urllib.request.urlopen(request, context=self.context, timeout=5)

    def stop(self):
        for process in (self.process, self.dns):
            process.kill()
            process.wait()


def plain_sites(hosts):
    return "\n".join(f'[sites."{host}".routes]\n"/" = {{ respond = "{host}" }}' for host in hosts)


class Edge:
    """An edge that orders certificates. `within` is put before its command."""

    def __init__(self, folder, directory, ports, hosts=HOSTS, ca=None, more="", sites=None, within=(), listen="127.0.0.1"):
        self.folder, (self.http, self.https), self.within = folder, ports, within
        folder.mkdir(exist_ok=True)
        sites = plain_sites(hosts) if sites is None else sites
        ca_file = f'ca_file = "{ca}"' if ca else ""
        (folder / "vestibule.toml").write_text(f"""
[listen]
http = ["{listen}:{self.http}"]
https = ["{listen}:{self.https}"]
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
        command = [*self.within, BINARY, "run", "--config", self.folder / "vestibule.toml"]
        self.process = subprocess.Popen(command, stderr=open(self.err, "w"))
        try:
            wait_for("the edge", lambda: self.process.poll() is None and '"started"' in self.err.read_text(), 20)
        except AssertionError:
            # Nobody will stop it, and its ports would be taken for free ones.
            self.kill()
            raise

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

    def renew(self, host):
        """Orders another certificate, and waits until it is served."""
        before = self.served(host)
        subprocess.run([BINARY, "--config", self.folder / "vestibule.toml", "renew", host], check=True, capture_output=True)
        wait_for("another certificate", lambda: self.served(host) not in (None, before), 60)

    def stored(self, host):
        return self.folder / f"state/certificates/{host}.json"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(15)


class Between(http.server.ThreadingHTTPServer):
    """Stands between the edge and pebble: keeps the paths of requests with the status of their answers, and does what `hooks` say before or instead of passing one on.

    A hook belongs to the beginning of a path; it gets the handler and returns an answer (status, fields, body), or
    nothing to let pebble answer."""

    daemon_threads = True

    def __init__(self, pebble, address=("127.0.0.1", 0)):
        self.pebble, self.hooks, self.seen, self.connections = pebble, {}, [], 0
        super().__init__(address, Passing)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pebble.folder / "localhost.pem", pebble.folder / "localhost.key")
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def directory(self):
        return f"https://localhost:{self.server_port}/dir"

    def count(self, beginning):
        return sum(path.startswith(beginning) for path, _ in self.seen)

    def process_request(self, *arguments):
        self.connections += 1
        super().process_request(*arguments)

    def handle_error(self, *_):
        """The edge was killed: that is the test."""


class Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hook = next((hook for path, hook in self.server.hooks.items() if self.path.startswith(path)), None)
        answers = self.server.seen
        answers.append((self.path, None))
        at = len(answers) - 1
        status, fields, answer = (hook and hook(self)) or self.passed_on(body)
        answers[at] = (self.path, status)
        self.send_response_only(status)
        for name, value in {**fields, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_HEAD = do_POST = do_GET

    def passed_on(self, body):
        upstream = http.client.HTTPSConnection("localhost", self.server.pebble.port, context=self.server.pebble.context)
        # pebble makes its URLs from the host, and the edge signs them.
        fields = {"Host": self.headers["Host"], "User-Agent": "between"}
        if "Content-Type" in self.headers:
            fields["Content-Type"] = self.headers["Content-Type"]
        upstream.request(self.command, self.path, body, fields)
        response = upstream.getresponse()
        dropped = {"content-length", "connection", "transfer-encoding"}
        kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        return response.status, kept, response.read()

    def log_message(self, *_):
        pass


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


def broken(answer):
    """A CA that answers everything the same way: its directory, and how to stop it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Broken,), {"answer": answer}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/dir", server.shutdown


@pytest.fixture
def stage(tmp_path):
    """Ports first, since pebble has to know where to look."""
    started = []

    def build(hosts=HOSTS, more="", blocked=None, between=None, sites=None, within=(), **pebble):
        ports = (free_port(), free_port())
        seen = (free_port() if blocked == "http-01" else ports[0], free_port() if blocked == "tls-alpn-01" else ports[1])
        ca = Pebble(tmp_path, *seen, **pebble)
        started.append(ca)
        directory = ca.directory
        if between is not None:
            ca.between = Between(ca)
            ca.between.hooks.update(between)
            directory = ca.between.directory
        edge = Edge(tmp_path / "edge", directory, ports, hosts, tmp_path / "ca.pem", more, sites, within)
        started.append(edge)
        return ca, edge

    yield build
    for one in reversed(started):
        one.stop()
