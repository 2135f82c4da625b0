"""DNS-01 by the APIs of providers: stand-ins of theirs put the records into pebble's DNS."""

import http.server
import json
import subprocess
import threading
import urllib.parse
import urllib.request

import pytest

from acme import BINARY, needs_pebble, plain_sites, wait_for
from test_acme_dns import WILD, behind_nat, names_of  # noqa: F401

pytestmark = needs_pebble

TOKEN = "t0ken-of-the-provider"
HOSTS = [WILD, "example.org"]


class Api(http.server.ThreadingHTTPServer):
    """An API with the zone example.org. `ca` is where its records go."""

    daemon_threads = True

    def __init__(self, handler):
        self.records, self.asked, self.ca = {}, [], None
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, name, values):
        self.ca.clear_text(name)
        for value in values:
            self.ca.set_text(name, value)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        self.server.asked.append(f"{self.command} {self.path}")
        status, answer = self.answer(url.path, dict(urllib.parse.parse_qsl(url.query)), json.loads(body or "null"))
        answer = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_):
        pass


class Cloudflare(Handler):
    def answer(self, path, query, body):
        records = self.server.records
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return 403, {"success": False, "errors": [{"message": f"Invalid token {self.headers['Authorization']}"}]}
        if path == "/zones":
            return 200, {"result": [{"id": "z1", "name": "example.org"}] if query["name"] == "example.org" else []}
        kept = path.removeprefix("/zones/z1/dns_records")
        if self.command == "POST":
            records[str(len(self.server.asked))] = body
        elif self.command == "DELETE":
            del records[kept.removeprefix("/")]
        else:
            return 200, {"result": [{"id": id, **one} for id, one in records.items() if one["name"] == query["name"]]}
        name = "_acme-challenge.example.org"
        self.server.publish(name, [one["content"].strip('"') for one in records.values()])
        return 200, {"success": True}


class Desec(Handler):
    def answer(self, path, query, body):
        if self.headers["Authorization"] != f"Token {TOKEN}":
            return 401, {"detail": "Invalid token."}
        records, rrset = self.server.records, "/domains/example.org/rrsets/"
        if self.command == "PUT" and path == rrset:
            [one] = body
            records[one["subname"]] = one["records"]
        elif self.command == "DELETE":
            records.pop(path.removeprefix(rrset).split("/")[0])
        elif path == "/domains/example.org/":
            return 200, {"name": "example.org"}
        elif path.startswith(rrset) and path.removeprefix(rrset).split("/")[0] in records:
            return 200, {"records": records[path.removeprefix(rrset).split("/")[0]]}
        else:
            return 404, {"detail": "Not found."}
        self.server.publish("_acme-challenge.example.org", [value.strip('"') for value in records.get("_acme-challenge", [])])
        return 200, body


class AcmeDns(Handler):
    def answer(self, path, query, body):
        if (path, self.headers["X-Api-User"], self.headers["X-Api-Key"]) != ("/update", "user", TOKEN):
            return 401, {"error": "forbidden"}
        # It keeps the last two.
        kept = self.server.records.setdefault(body["subdomain"], [])
        kept[:] = [*kept, body["txt"]][-2:]
        self.server.publish(f"{body['subdomain']}.auth.example.net", kept)
        return 200, {"txt": body["txt"]}


@pytest.fixture
def api():
    started = []

    def build(handler):
        started.append(Api(handler))
        return started[-1]

    yield build
    for one in started:
        one.shutdown()


def ordered(behind_nat, api, settings, hosts, alias=None):
    def more(ca):
        api.ca = ca
        if alias:
            body = json.dumps({"host": "_acme-challenge.example.org.", "target": f"{alias}."}).encode()
            urllib.request.urlopen(f"http://127.0.0.1:{ca.dns_management}/set-cname", body, timeout=5)
        return f'challenges = "dns-01"\ndns = {{ {settings}, nameservers = ["127.0.0.1:{ca.dns_port}"] }}'

    ca, edge = behind_nat(more, plain_sites(hosts))
    return edge


@pytest.mark.parametrize("name, handler", [("cloudflare", Cloudflare), ("desec", Desec)])
def test_a_wildcard_and_its_parent_are_proven_by_the_api_of_a_provider(behind_nat, api, name, handler):
    stand_in = api(handler)
    edge = ordered(behind_nat, stand_in, f'provider = "{name}", api_token = "{TOKEN}", api_url = "{stand_in.url}"', HOSTS)
    wait_for("certificates", lambda: all(edge.status()[host]["not_after"] for host in HOSTS), 120)
    assert names_of(edge.served("any.example.org")) == "DNS:*.example.org"
    assert names_of(edge.served("example.org")) == "DNS:example.org"
    wait_for("the records to go", lambda: not any(stand_in.records.values()), 20)
    assert TOKEN not in edge.log()


def test_acme_dns_is_where_the_challenge_is_an_alias_to(behind_nat, api, tmp_path):
    stand_in = api(AcmeDns)
    secret = tmp_path / "password"
    secret.write_text(TOKEN + "\n")
    settings = (f'provider = "acme-dns", api_url = "{stand_in.url}", username = "user", password_file = "{secret}", '
                'subdomain = "d420c923"')
    edge = ordered(behind_nat, stand_in, settings, HOSTS, alias="d420c923.auth.example.net")
    wait_for("certificates", lambda: all(edge.status()[host]["not_after"] for host in HOSTS), 120)
    assert names_of(edge.served("any.example.org")) == "DNS:*.example.org"
    assert TOKEN not in edge.log()


def test_a_key_that_the_provider_refuses_is_told_and_not_shown(behind_nat, api):
    stand_in = api(Cloudflare)
    edge = ordered(behind_nat, stand_in, f'provider = "cloudflare", api_token = "wr0ng-key", api_url = "{stand_in.url}"', [WILD])
    wait_for("the reason", lambda: edge.status()[WILD]["failures"], 60)
    reason = edge.status()[WILD]["last_error"]
    assert "cloudflare: it refuses our key (HTTP 403)" in reason, reason
    assert "wr0ng-key" not in reason + edge.log()


@pytest.mark.parametrize("settings, words", [
    ('provider = "cloudflar", api_token = "x"', "did you mean `cloudflare`?"),
    ('provider = "no-such-host"', "known: bunny, cloudflare, desec"),
    ('provider = "cloudflare"', "`cloudflare` needs `api_token`"),
    ('provider = "hetzner", api_tokn = "s3cret-key"', "did you mean `api_token`?"),
    ('provider = "gandi", api_token = "a", api_token_file = "b"', "are the same thing"),
    ('provider = "porkbun", api_token = "s3cret-key"', "`porkbun` needs `api_secret`"),
    ('provider = "dnsimple", api_token = "s3cret-key"', "`dnsimple` needs `account_id`"),
    ('provider = "acme-dns", api_url = "https://x.org", username = "u", password = "s3cret-key"', "`acme-dns` needs `subdomain`"),
    ('provider = "vultr", api_token = "s3cret-key", key_name = "x"', "unknown key `key_name`"),
])
def test_wrong_settings_are_told_by_name_and_without_the_key(tmp_path, settings, words):
    config = tmp_path / "vestibule.toml"
    config.write_text(f'acme.dns = {{ {settings} }}\nsites."{WILD}".upstream = "http://127.0.0.1:1"\n')
    done = subprocess.run([BINARY, "check", "--config", config], capture_output=True, text=True)
    assert done.returncode == 78 and words in done.stderr and "s3cret-key" not in done.stderr, done.stderr
    assert "no CA signs a wildcard" not in done.stderr, "nothing that only follows from it"


@pytest.mark.parametrize("settings", [
    *(f'provider = "{name}", api_token = "x"' for name in
      ["bunny", "cloudflare", "desec", "digitalocean", "gandi", "hetzner", "ionos", "linode", "netlify", "vultr"]),
    'provider = "porkbun", api_token = "x", api_secret = "y"',
    'provider = "dnsimple", api_token = "x", account_id = "1010"',
    'provider = "acme-dns", api_url = "https://auth.example.org", username = "u", password = "p", subdomain = "s"',
])
def test_each_provider_makes_a_wildcard_possible(tmp_path, settings):
    config = tmp_path / "vestibule.toml"
    config.write_text(f'acme.dns = {{ {settings} }}\nsites."{WILD}".upstream = "http://127.0.0.1:1"\n')
    done = subprocess.run([BINARY, "check", "--config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
