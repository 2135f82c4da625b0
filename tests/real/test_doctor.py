"""`vestibule doctor` in front of a real Synapse: a healthy deployment is all ok, and of each thing that breaks for people who
run such a deployment (each is a row, by whose number src/doctor refers to it) it names that one and no other."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

import pytest

from conftest import BINARY, ONE_HOST, ROOT, Edge, Synapse, free_port, wait_for
from standins import KEY, SECRET, Authority, LiveKit, LkJwt, Meddler, NameServer, Relay, Web, closed_port

# lk-jwt-service as an application service; its stand-ins take this port one after the other.
JWT_PORT, TOKENS = free_port(), ("an_as_token_of_the_tests", "an_hs_token_of_the_tests")
REGISTRATIONS = pathlib.Path(tempfile.mkdtemp(prefix="registrations"))


def registration(port):
    path = REGISTRATIONS / f"{port}.yaml"
    path.write_text(f"""
id: livekit
as_token: {TOKENS[0]}
hs_token: {TOKENS[1]}
sender_localpart: _lk_jwt_service
namespaces: {{ users: [{{ exclusive: false, regex: '.*' }}] }}
url: null
io.element.msc4502.scopes: ["urn:matrix:client:io.element.msc4502:rooms:is_joined"]
io.element.msc4512.proxy_prefix: rtc/livekit
io.element.msc4512.proxy_url: http://127.0.0.1:{port}
""")
    return f"app_service_config_files: ['{path}']\n"


FEATURES = "max_event_delay_duration: 24h\nexperimental_features: { msc4222_enabled: true, msc4502_enabled: true, msc4512_enabled: true }\n"
HEALTHY = FEATURES + registration(JWT_PORT)

SITES = """
[matrix]
server_name = "example.org"
{matrix}
[sites."matrix.example.org"]
kind     = "synapse"
upstream = {upstream}
{homeserver}
[sites."jwt.matrixrtc.example.org"]
kind     = "lk-jwt"
upstream = "http://127.0.0.1:{jwt}"
[sites."matrixrtc.example.org"]
kind     = "livekit"
upstream = "http://127.0.0.1:{livekit}"
{apex}
"""

APEX = '[sites."example.org"]\nredirect = "https://www.example.org"\n'


@pytest.fixture(scope="module")
def synapses(tmp_path_factory):
    """Real homeservers by their settings, started when they are first asked for."""
    running = {}

    def get(settings=HEALTHY, **listener):
        key = (settings, *sorted(listener.items()))
        if key not in running:
            running[key] = Synapse(tmp_path_factory.mktemp("synapse"), settings, **listener)
        return running[key]

    yield get
    for server in running.values():
        server.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Deployment:
    """Three names and the server name behind one edge."""

    def __init__(self, folder, synapse, sites=SITES, ports=None, **parts):
        self.folder, self.synapse = folder, synapse
        self.livekit = LiveKit()
        self.jwt = LkJwt("", lambda: f"http://127.0.0.1:{synapse.port}", lambda: f"http://127.0.0.1:{self.livekit.port}",
                         port=JWT_PORT)
        self.jwt.tokens = TOKENS
        values = {"matrix": "", "homeserver": "", "apex": APEX, "upstream": f'"http://127.0.0.1:{synapse.port}"', **parts}
        ports = ports or (free_port(), free_port())
        text = sites.format(https=ports[1], synapse=synapse.port, jwt=self.jwt.port, livekit=self.livekit.port, **values)
        self.edge = Edge(folder, text, ports=ports)
        self.jwt.url = self.edge.url("matrixrtc.example.org").replace("https", "wss")

    def stop(self):
        self.edge.process.kill()
        self.edge.process.wait()
        self.livekit.stop()
        self.jwt.stop()

    def doctor(self, *arguments, environment=None):
        """The findings, and how the program ended."""
        edge = self.edge
        command = [BINARY, "doctor", "--json", "--config", edge.folder / "vestibule.toml"]
        command += ["--resolve", f"*:{edge.https}:127.0.0.1", "--resolve", f"*:80:127.0.0.1:{edge.http}", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **(environment or {})})
        assert done.returncode in (0, 1), done.stderr
        report = json.loads(done.stdout)
        assert report["ok"] == (done.returncode == 0)
        assert report["ok"] == (not [finding for finding in report["findings"] if finding["verdict"] == "fail"])
        return report["findings"]

    def user(self):
        """A new user of the homeserver: name and token."""
        name = f"u{uuid.uuid4().hex[:12]}"
        body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
        request = urllib.request.Request(f"http://127.0.0.1:{self.synapse.port}/_matrix/client/v3/register", json.dumps(body).encode())
        return name, json.load(urllib.request.urlopen(request))["access_token"]


@pytest.fixture
def deploy(tmp_path, synapses):
    with contextlib.ExitStack() as stack:

        def start(settings=HEALTHY, **parts):
            listener = {key: parts.pop(key) for key in ("serves", "forwarded") if key in parts}
            deployment = Deployment(tmp_path, synapses(settings, **listener), **parts)
            stack.callback(deployment.stop)
            return deployment

        yield start


def ids(findings, verdict="fail"):
    return sorted(finding["id"] for finding in findings if finding["verdict"] == verdict)


def names(findings, *expected, warns=()):
    """Exactly these are broken, and every one says a fact and a fix."""
    broken = [finding for finding in findings if finding["verdict"] in ("fail", "warn")]
    told = "\n".join(f"{finding['verdict']} {finding['id']} {finding['subject']}: {finding['fact']}" for finding in findings)
    assert ids(findings) == sorted(expected), told
    assert ids(findings, "warn") == sorted(warns), told
    assert all(finding["fact"] and finding["fix"] for finding in broken)


# Healthy


def test_a_healthy_deployment_is_all_ok(deploy, tmp_path):
    deployment = deploy()
    began = time.monotonic()
    findings = deployment.doctor()
    took = time.monotonic() - began
    names(findings)
    # What is not looked at says why.
    assert set(ids(findings, "skip")) == {"account", "rtc.media", "well-known.support"}
    for wanted in ("dns", "tls", "tls.inside", "http", "services.synapse", "services.lk-jwt", "services.livekit", "well-known.client",
                   "well-known.server", "homeserver.versions", "homeserver.delayed_events", "homeserver.uri", "homeserver.login",
                   "homeserver.upload", "homeserver.exposed", "federation", "federation.listener", "federation.key",
                   "federation.openid", "rtc.foci", "rtc.transports", "rtc.jwt", "rtc.sfu", "rtc.tokens",
                   "rtc.tokens_federation", "rtc.jwt_version", "homeserver.release"):
        assert wanted in ids(findings, "ok"), wanted
    assert took < 20, took
    print(f"a healthy run took {took:.2f} s")


def test_an_account_shows_more_and_its_session_is_closed(deploy):
    deployment = deploy()
    name, token = deployment.user()
    findings = deployment.doctor("--user", name, environment={"VESTIBULE_PASSWORD": "a long password"})
    names(findings)
    for wanted in ("account", "rtc.transports", "rtc.call", "rtc.call_by_homeserver", "homeserver.upload_limit", "homeserver.client_address"):
        assert wanted in ids(findings, "ok"), wanted
    assert "rtc.call" not in ids(deployment.doctor(), "ok")
    devices = urllib.request.Request(f"http://127.0.0.1:{deployment.synapse.port}/_matrix/client/v3/devices",
                                     headers={"Authorization": f"Bearer {token}"})
    assert len(json.load(urllib.request.urlopen(devices))["devices"]) == 1, "only the one of the registration is left"
    names(deployment.doctor("--token", token))
    names(deployment.doctor("--token", "nonsense"), "account.token")
    names(deployment.doctor("--user", name, environment={"VESTIBULE_PASSWORD": "wrong"}), "account.login")


def test_one_host_with_prefixes_is_all_ok(deploy):
    sites = ONE_HOST.replace("{calls}", "{jwt}", 1).replace("{calls}", "{livekit}", 1)
    deployment = deploy(sites=sites)
    deployment.jwt.url = deployment.edge.url("matrix.example.org").replace("https", "wss") + "/livekit/sfu"
    names(deployment.doctor("--token", deployment.user()[1]))


def test_it_can_be_read_by_people(deploy):
    deployment = deploy()
    deployment.jwt.stop()
    edge = deployment.edge
    command = [BINARY, "doctor", "--config", edge.folder / "vestibule.toml", "--resolve", f"*:{edge.https}:127.0.0.1"]
    done = subprocess.run([*command, "--resolve", f"*:80:127.0.0.1:{edge.http}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if "services.lk-jwt.down" in line)
    assert lines[at].startswith("  fail  ") and "->" in lines[at + 1]
    assert "\x1b" not in done.stdout + done.stderr
    broken = edge.folder / "broken.toml"
    broken.write_text("[matrix]\nserver = 1\n")
    assert subprocess.run([BINARY, "doctor", "--config", broken], capture_output=True).returncode == 78


# 1: calls cannot be found


def test_row_1_transports_are_off(deploy):
    names(deploy(matrix='rtc_transports = "pass"').doctor(), "rtc.transports.off")


def test_row_1_the_list_of_transports_is_empty(deploy):
    settings = HEALTHY.replace("{ msc4222", "{ msc4143_enabled: true, msc4222")
    deployment = deploy(settings, matrix='rtc_transports = "pass"')
    names(deployment.doctor("--token", deployment.user()[1]), "rtc.transports.empty")


def test_row_1_what_synapse_leaves_out_is_filled_in(deploy):
    deployment = deploy(HEALTHY.replace("{ msc4222", "{ msc4143_enabled: true, msc4222"))
    names(deployment.doctor("--token", deployment.user()[1]))


def test_row_1_nobody_lets_clients_into_calls(deploy):
    sites = SITES.replace('[sites."jwt.matrixrtc.example.org"]\nkind     = "lk-jwt"\nupstream = "http://127.0.0.1:{jwt}"\n', "")
    names(deploy(sites=sites).doctor(), "rtc.foci.missing")


# 2: documents that web clients cannot use


CORS = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Methods", "GET"), ("Access-Control-Allow-Headers", "Authorization")]
JSON = [("Content-Type", "application/json")]


@pytest.mark.parametrize("fault", [
    "none", "missing", "html", "json", "type", "cors", "cors-twice", "redirect", "status", "homeserver", "differs", "delegation",
])
def test_row_2_documents_of_another_web_server(deploy, authority, fault):
    web = Web(tls=authority.context("example.org"))
    deployment = deploy(apex="")
    edge = deployment.edge
    document = {
        "m.homeserver": {"base_url": edge.url("matrix.example.org")},
        "org.matrix.msc4143.rtc_foci": [{"type": "livekit", "livekit_service_url": edge.url("jwt.matrixrtc.example.org")}],
    }
    server = {"m.server": f"matrix.example.org:{edge.https}"}
    client = (200, CORS + JSON, json.dumps(document))
    expected = {
        "none": [],
        "html": ["well-known.client.cors"],
        "cors-twice": ["well-known.client.cors"],
        "delegation": ["federation.delegation"],
    }.get(fault, [f"well-known.client.{fault}"])
    match fault:
        case "missing":
            client = (404, [], "404 page not found")
        case "html":
            client = (200, [("Content-Type", "text/html")], "<!doctype html><title>my site</title>")
        case "json":
            # The guide's own, which lacks its last brace.
            client = (200, CORS + JSON, json.dumps(document)[:-1])
        case "type":
            client = (200, CORS + [("Content-Type", "text/plain")], json.dumps(document))
        case "cors":
            client = (200, JSON, json.dumps(document))
        case "cors-twice":
            client = (200, CORS + CORS[:1] + JSON, json.dumps(document))
        case "redirect":
            client = (301, [("Location", f"{edge.url('matrix.example.org')}/.well-known/matrix/client")], "")
        case "status":
            client = (500, CORS, "")
        case "homeserver":
            client = (200, CORS + JSON, json.dumps({**document, "m.homeserver": {"base_url": "https://old.example.org"}}))
        case "differs":
            client = (200, CORS + JSON, json.dumps({**document, "io.element.e2ee": {"default": False}}))
    nameserver = NameServer({})
    web.pages = {
        "/.well-known/matrix/client": client,
        "/.well-known/matrix/server": (200, CORS + JSON, json.dumps(server)),
        "/.well-known/matrix/support": (404, CORS, ""),
    }
    closed = closed_port()
    if fault == "delegation":
        web.pages["/.well-known/matrix/server"] = (404, CORS, "")
    findings = deployment.doctor("--ca-file", authority.root, "--resolve", f"example.org:443:127.0.0.1:{web.port}",
                                 "--resolve", f"*:8448:127.0.0.1:{closed}", "--nameserver", nameserver.address)
    nameserver.stop()
    web.stop()
    names(findings, *expected)


@pytest.mark.parametrize("extra, expected, warns", [
    ('"org.matrix.msc4143.rtc_foci" = [{ type = "livekit", livekit_service_url = "https://jwt.example.org/" }]', ["rtc.foci.slash"], []),
    ('"org.matrix.msc3575.proxy" = { url = "https://x.example.org" }', [], ["well-known.client.dead"]),
])
def test_row_2_documents_of_the_edge_with_members_that_harm(deploy, extra, expected, warns):
    names(deploy(matrix=f"[matrix.client]\n{extra}").doctor(), *expected, warns=warns)


# 18: tokens by way of the homeserver

LIST = "matrix_rtc: {{ transports: [{{ type: livekit, {url}livekit_service_url: '{service}' }}] }}\n"
OFF = HEALTHY.replace("msc4512_enabled: true", "msc4512_enabled: false")


def fact(findings, id):
    return next(finding["fact"] for finding in findings if finding["id"] == id)


def test_row_18_tokens_are_not_handed_out_and_the_line_is_named(deploy, tmp_path):
    deployment = deploy(OFF)
    names(deployment.doctor(), warns=["rtc.tokens.unserved"])
    names(deployment.doctor("--token", deployment.user()[1]), warns=["rtc.tokens.unserved"])
    file = tmp_path / "homeserver.yaml"
    lines = (ROOT / "config/homeserver-lines.yaml").read_text()
    ports = {"wss://matrixrtc.example.org": deployment.jwt.url, "https://jwt.matrixrtc.example.org": deployment.edge.url("jwt.matrixrtc.example.org")}
    for old, new in ports.items():
        lines = lines.replace(old, new)
    file.write_text(lines)
    names(deployment.doctor("--homeserver", file), "rtc.tokens.registration")
    file.write_text("".join(line for line in lines.splitlines(True) if "msc4512" not in line and " url: " not in line))
    findings = deployment.doctor("--homeserver", file)
    names(findings, warns=["rtc.tokens.lines", "files.homeserver.tokens"])
    assert "msc4512_enabled" in fact(findings, "rtc.tokens.lines") and "app_service" not in fact(findings, "rtc.tokens.lines")


@pytest.mark.parametrize("served, url, expected, warns", [
    (False, True, ["rtc.transports.promise"], ["rtc.tokens.unserved"]),
    (True, False, [], ["rtc.transports.no_url"]),
])
def test_row_18_a_url_is_a_promise(tmp_path, synapses, served, url, expected, warns):
    # Its own list names the addresses that clients see, so the ports come first.
    ports = (free_port(), free_port())
    of = lambda scheme, host: f"{scheme}://{host}.example.org:{ports[1]}"
    lists = LIST.format(url=f"url: '{of('wss', 'matrixrtc')}', " if url else "", service=of("https", "jwt.matrixrtc"))
    settings = (HEALTHY if served else OFF).replace("{ msc4222", "{ msc4143_enabled: true, msc4222") + lists
    deployment = Deployment(tmp_path, synapses(settings), ports=ports)
    try:
        names(deployment.doctor("--token", deployment.user()[1]), *expected, warns=warns)
    finally:
        deployment.stop()


@pytest.mark.parametrize("fault", ["unreachable", "hs_token", "url", "other", "membership"])
def test_row_18_what_is_wrong_between_the_homeserver_and_the_service(deploy, fault):
    other = LkJwt("wss://other.example.org", lambda: "http://127.0.0.1:1", lambda: "http://127.0.0.1:1")
    other.tokens = TOKENS
    leads_to = {"unreachable": closed_port(), "other": other.port}.get(fault, JWT_PORT)
    deployment = deploy(FEATURES + registration(leads_to))
    expected, jwt = [f"rtc.call_by_homeserver.{fault}"], deployment.jwt
    match fault:
        case "other":
            expected = ["rtc.call_by_homeserver.url"]
        case "hs_token":
            jwt.tokens = (TOKENS[0], "another")
        case "url":
            jwt.url += "/"
        case "membership":
            # The old way asks for it as well.
            jwt.tokens, expected = ("another", TOKENS[1]), ["rtc.call.not_joined", "rtc.call_by_homeserver.membership"]
    findings = deployment.doctor("--token", deployment.user()[1])
    names(findings, *expected)
    other.stop()
    if fault == "other":
        assert "Synapse uses another lk-jwt-service" in fact(findings, expected[0])
    if fault == "url":
        said = fact(findings, expected[0])
        assert f'"{jwt.url}"' in said and f'"{jwt.url[:-1]}"' in said and "slash" in said


def test_row_18_a_room_that_the_account_has_not_joined_or_may_not_call_in(deploy):
    deployment = deploy()
    (_, mine), (_, other) = deployment.user(), deployment.user()

    def room(token, **more):
        url = f"http://127.0.0.1:{deployment.synapse.port}/_matrix/client/v3/createRoom"
        request = urllib.request.Request(url, json.dumps(more).encode(), {"Authorization": f"Bearer {token}"})
        return json.load(urllib.request.urlopen(request))["room_id"]

    names(deployment.doctor("--token", mine, "--room", room(other)), "rtc.call.not_joined")
    names(deployment.doctor("--token", mine, "--room", room(mine)), "rtc.power_levels.closed")
    open_room = room(mine, power_level_content_override={"events": {"org.matrix.msc3401.call.member": 0}})
    findings = deployment.doctor("--token", mine, "--room", open_room)
    names(findings)
    assert "rtc.power_levels" in ids(findings, "ok") and "rtc.call_by_homeserver" in ids(findings, "ok")


def test_row_18_other_homeservers_do_not_get_through(deploy):
    closed = '[sites."matrix.example.org".routes]\n"/_matrix/federation/v1/rtc" = { respond = { status = 404, body = "no" } }'
    names(deploy(homeserver=closed).doctor(), "rtc.tokens_federation.unserved")


def test_row_18_a_service_that_is_too_old_or_does_not_say(deploy, tmp_path):
    deployment = deploy()
    deployment.jwt.version = (0, 9)
    names(deployment.doctor(), warns=["rtc.jwt_version.old"])
    deployment.jwt.tokens, deployment.jwt.version = None, (0, 5)
    findings = deployment.doctor()
    names(findings, "rtc.jwt_version.old")
    assert "GHSA-rq24-fh66-rq7x" in fact(findings, "rtc.jwt_version.old")
    deployment.jwt.version = (0, 6)
    findings = deployment.doctor()
    names(findings)
    assert "rtc.jwt_version" in ids(findings, "skip") and "version unknown" in fact(findings, "rtc.jwt_version")
    compose = tmp_path / "compose.yaml"
    for tag, expected, warns in [("0.7.1", ["files.compose.lk_jwt_old"], []), ("0.9.0", [], ["files.compose.lk_jwt_old"])]:
        text = (ROOT / "config/compose.yaml").read_text().replace("wss://matrixrtc.example.org", deployment.jwt.url)
        compose.write_text(text.replace("lk-jwt-service:0.10.0", f"lk-jwt-service:{tag}"))
        findings = deployment.doctor("--compose", compose)
        names(findings, *expected, warns=warns)
        assert ("GHSA-rq24-fh66-rq7x" in json.dumps(findings)) == bool(expected)


@pytest.mark.parametrize("version, settings, named", [
    ("1.150.0", OFF, ["homeserver.release.untested", "rtc.tokens.msc4512"]),
    ("1.162.0", HEALTHY, ["homeserver.release.untested"]),
])
def test_row_18_a_synapse_that_is_too_old_or_older_than_the_tested_one(deploy, synapses, version, settings, named):
    old = Meddler(synapses(settings).port)
    old.version = version
    findings = deploy(settings, upstream=f'"http://127.0.0.1:{old.port}"').doctor()
    old.stop()
    names(findings, warns=named)
    told = {finding["id"]: finding["fact"] + finding["fix"] for finding in findings if finding["id"] in named}
    assert all(version in text for text in told.values())
    assert "1.161.0" in told.get("rtc.tokens.msc4512", "1.161.0"), "which Synapse has it is told"


@pytest.mark.parametrize("file, old, new, expected, warns", [
    (None, "", "", [], []),
    ("compose", '"matrix-rtc: ${LIVEKIT_SECRET:?}"', '"other: ${LIVEKIT_SECRET:?}"', ["files.secret.key"], []),
    ("compose", '"matrix-rtc: ${LIVEKIT_SECRET:?}"', '"matrix-rtc: another"', ["files.secret.differs"], []),
    ("compose", "LIVEKIT_URL: SFU", "LIVEKIT_URL: SFU/", ["files.compose.livekit_url", "files.url.differs"], []),
    ("homeserver", "url: SFU ", "url: SFU/ ", ["files.homeserver.sfu_differs", "files.url.differs"], []),
    ("livekit", "api_key: matrix-rtc", "api_key: other", ["files.webhook.differs"], []),
    ("compose", "HOMESERVERS: example.org", "HOMESERVERS: '*'", [], ["files.compose.full_access_wide"]),
    ("compose", "HOMESERVERS: example.org", "HOMESERVERS: example.org, other.org", [], ["files.compose.full_access_wide"]),
    ("compose", "livekit-server:v1.13.9", "livekit-server:v1.9.9", ["files.compose.livekit_old"], []),
    ("compose", "livekit-server:v1.13.9", "livekit-server:v1.13.5", [], ["files.compose.untested"]),
    ("compose", "synapse:v1.163.2", "synapse:v1.160.0", [], ["files.compose.synapse_old"]),
])
def test_row_18_the_three_files_do_not_fit_together(deploy, tmp_path, file, old, new, expected, warns):
    deployment = deploy()
    sfu, service = deployment.jwt.url, deployment.edge.url("jwt.matrixrtc.example.org")
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        changes = {
            "compose": {"LIVEKIT_URL: wss://matrixrtc.example.org": f"LIVEKIT_URL: {sfu}"},
            "homeserver": {"url: wss://matrixrtc.example.org ": f"url: {sfu} ", "https://jwt.matrixrtc.example.org": service},
            "livekit": {"tcp_port: 7881": f"tcp_port: {tcp.getsockname()[1]}", "udp_port: 7882": f"udp_port: {udp.getsockname()[1]}"},
        }
        arguments = []
        for kind, name in [("compose", "compose"), ("homeserver", "homeserver-lines"), ("livekit", "livekit")]:
            fault = {old.replace("SFU", sfu): new.replace("SFU", sfu)} if kind == file else {}
            rewrite(ROOT / f"config/{name}.yaml", tmp_path / f"{kind}.yaml", {**changes[kind], **fault})
            arguments += [f"--{kind}", tmp_path / f"{kind}.yaml"]
        (tmp_path / ".env").write_text("LIVEKIT_SECRET=a secret of the tests\n")
        findings = deployment.doctor(*arguments)
    names(findings, *expected, warns=warns)
    together = {"files.secret", "files.url", "files.webhook"}
    broken = {id.rsplit(".", 1)[0] for id in expected}
    assert together - broken <= set(ids(findings, "ok"))
    assert "a secret of the tests" not in json.dumps(findings)
    if "files.url.differs" in expected:
        assert f'"{sfu}/"' in fact(findings, "files.url.differs") and f'"{sfu}"' in fact(findings, "files.url.differs")


# 3 and 12: the service that lets clients into calls


def test_row_3_a_prefix_that_stays_on(deploy):
    sites = ONE_HOST.replace('{calls}", strip_prefix = true', '{jwt}", strip_prefix = false', 1).replace("{calls}", "{livekit}", 1)
    names(deploy(sites=sites).doctor(), "rtc.jwt.prefix")


def test_row_5_a_prefix_that_stays_on_before_livekit(deploy):
    sites = ONE_HOST.replace("{calls}", "{jwt}", 1).replace('{calls}", strip_prefix = true', '{livekit}", strip_prefix = false', 1)
    names(deploy(sites=sites).doctor(), "rtc.sfu.other")


def test_row_3_an_old_lk_jwt_service(deploy):
    deployment = deploy()
    deployment.jwt.old = True
    names(deployment.doctor(), "rtc.jwt.old")


def test_row_12_lk_jwt_service_does_not_run(deploy):
    deployment = deploy()
    deployment.jwt.stop()
    names(deployment.doctor("--token", deployment.user()[1]), "services.lk-jwt.down")


def test_row_12_the_upstream_is_another_service(deploy):
    deployment = deploy()
    sites = SITES.replace("127.0.0.1:{jwt}", "127.0.0.1:{livekit}")
    deployment.stop()
    names(deploy(sites=sites).doctor(), "services.lk-jwt.other")


# 4 and 5: a token for a call


def test_row_4_the_call_service_cannot_ask_the_homeserver(deploy):
    deployment = deploy()
    deployment.jwt.reaches = False
    names(deployment.doctor("--token", deployment.user()[1]), "rtc.call.openid")


@pytest.mark.parametrize("fault", ["room", "key", "url"])
def test_row_5_the_call_service_and_livekit_do_not_fit(deploy, fault):
    deployment = deploy()
    nowhere = closed_port()
    match fault:
        case "room":
            deployment.jwt.livekit = lambda: f"http://127.0.0.1:{nowhere}"
        case "key":
            deployment.jwt.secret = SECRET[::-1]
        case "url":
            deployment.jwt.url = "wss://old.example.org"
    names(deployment.doctor("--token", deployment.user()[1]), f"rtc.call.{fault}")


# 6 and 7: the SFU


@pytest.mark.parametrize("fault, expected", [("old", "rtc.sfu.old"), ("deaf", "rtc.sfu.upgrade")])
def test_row_6_an_sfu_that_today_s_clients_cannot_use(deploy, fault, expected):
    deployment = deploy()
    setattr(deployment.livekit, fault, True)
    names(deployment.doctor(), expected)


LIVEKIT_YAML = """
keys: {{ devkey: a secret of thirty-two characters }}
rtc: {{ tcp_port: {tcp}, udp_port: {udp}, {address} }}
room: {{ auto_create: false }}
webhook: {{ api_key: devkey, urls: ["http://lk-jwt-service:8080/sfu_webhook"] }}
"""


@pytest.mark.parametrize("fault, expected", [("none", []), ("tcp", ["rtc.media.tcp.closed"]), ("udp", ["rtc.media.udp.closed"]),
                                             ("address", ["rtc.media.address.node_ip"])])
def test_row_7_media_ports(deploy, tmp_path, fault, expected):
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        closed = closed_port()
        file = tmp_path / "livekit.yaml"
        file.write_text(LIVEKIT_YAML.format(
            tcp=closed if fault == "tcp" else tcp.getsockname()[1],
            udp=closed if fault == "udp" else udp.getsockname()[1],
            address="node_ip: 203.0.113.7" if fault == "address" else "use_external_ip: true"))
        findings = deploy().doctor("--livekit", file)
    names(findings, *expected)
    assert "files.livekit" in ids(findings, "ok")


def test_row_7_livekit_tells_the_address_of_its_container(deploy, tmp_path):
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        file = tmp_path / "livekit.yaml"
        file.write_text(LIVEKIT_YAML.format(tcp=tcp.getsockname()[1], udp="50000-60000", address="use_external_ip: false"))
        findings = deploy().doctor("--livekit", file)
    names(findings, warns=["files.livekit.address"])
    assert next(f for f in findings if f["id"] == "files.livekit.address")["subject"].endswith("livekit.yaml:3")


@pytest.mark.parametrize("fault", ["none", "down", "silent", "unknown", "refused"])
def test_row_7_media_through_443_alone(deploy, fault):
    relay = Relay()
    relay.silent = fault == "silent"
    port = closed_port() if fault == "down" else relay.port
    site = f'[sites."turn.example.org"]\nkind = "turn"\nupstream = "tcp://127.0.0.1:{port}"\n'
    deployment = deploy(apex=APEX + site)
    told = "other.example.org" if fault == "unknown" else "turn.example.org"
    deployment.livekit.relay = (f"turns:{told}:443?transport=tcp", "user", "wrong" if fault == "refused" else "pass")
    findings = deployment.doctor("--token", deployment.user()[1])
    relay.stop()
    names(findings, *{"none": [], "down": ["rtc.turn.down"], "silent": ["rtc.turn.silent"]}.get(fault, [f"rtc.turn.allocation.{fault}"]))
    assert ("rtc.turn" in ids(findings, "ok")) == (fault not in ("down", "silent"))
    assert ("rtc.turn.allocation" in ids(findings, "ok")) == (fault == "none")


@pytest.mark.parametrize("addresses, verdict", [(["172.18.0.5", "198.51.100.7"], "ok"), (["172.18.0.5", "fd00::5"], "skip"), ([], "skip")])
def test_row_7_the_addresses_that_livekit_tells_to_who_joins(deploy, addresses, verdict):
    """What fails needs a name with a public address: `test_real_calls.py`."""
    deployment = deploy()
    deployment.livekit.addresses = addresses
    findings = deployment.doctor("--token", deployment.user()[1])
    names(findings)
    found = next(finding for finding in findings if finding["id"] == "rtc.media.candidates")
    assert found["verdict"] == verdict and all(ip in found["fact"] for ip in addresses[-1:]), found


# 8: members that never leave


def test_row_8_delayed_events_are_off(deploy):
    names(deploy(HEALTHY.replace("max_event_delay_duration: 24h\n", "")).doctor(), "homeserver.delayed_events.off")


def test_row_8_everybody_shares_one_limit(deploy):
    """Synapse counts per address; somebody else has used up that of the address which it sees of everybody."""
    deployment = deploy(HEALTHY + "rc_delayed_event_mgmt: { per_second: 0.003, burst_count: 2 }\n")
    url = f"http://127.0.0.1:{deployment.synapse.port}/_matrix/client/unstable/org.matrix.msc4140/delayed_events/x/restart"
    for _ in range(10):
        try:
            urllib.request.urlopen(urllib.request.Request(url, b"{}", {"X-Forwarded-For": "127.0.0.1"}))
        except urllib.error.HTTPError as answer:
            if answer.code == 429:
                break
    names(deployment.doctor(), "homeserver.delayed_events.limited")


# 9: federation (more of it with row 2)


def test_row_9_the_listener_does_not_federate(deploy):
    names(deploy(serves="client").doctor(), "federation.listener.missing")


def test_row_9_addresses_are_rewritten_on_the_way(deploy, synapses):
    meddler = Meddler(synapses().port)
    findings = deploy(upstream=f'"http://127.0.0.1:{meddler.port}"').doctor()
    meddler.stop()
    names(findings, "homeserver.uri.rewritten")


def test_row_9_the_server_name_is_another(deploy):
    sites = SITES.replace('server_name = "example.org"', 'server_name = "example.net"').replace("{apex}", '{apex}[sites."example.net"]\n')
    names(deploy(sites=sites).doctor(), "federation.key.server_name")


@pytest.mark.parametrize("service", ["_matrix-fed", "_matrix", None])
def test_row_9_federation_by_srv_records(deploy, authority, service):
    """A server name whose web site knows nothing of servers: the record leads to a machine that has its certificate."""
    deployment = deploy(apex="")
    edge = deployment.edge
    web, federation = Web(tls=authority.context("example.org")), Meddler(deployment.synapse.port, tls=authority.context("example.org"))
    document = {
        "m.homeserver": {"base_url": edge.url("matrix.example.org")},
        "org.matrix.msc4143.rtc_foci": [{"type": "livekit", "livekit_service_url": edge.url("jwt.matrixrtc.example.org")}],
    }
    web.pages = {
        "/.well-known/matrix/client": (200, CORS + JSON, json.dumps(document)),
        "/.well-known/matrix/server": (404, [], "404 page not found"),
        "/.well-known/matrix/support": (404, CORS, ""),
    }
    # Without a record it is port 8448.
    port = federation.port if service else 8448
    nameserver = NameServer({f"{service}._tcp.example.org": ("fed.example.org", port)})
    findings = deployment.doctor("--ca-file", authority.root, "--nameserver", nameserver.address,
                                 "--resolve", f"example.org:443:127.0.0.1:{web.port}",
                                 "--resolve", f"*:{port}:127.0.0.1:{federation.port}")
    for one in (web, federation, nameserver):
        one.stop()
    names(findings)
    assert "federation.key" in ids(findings, "ok")
    fact = next(finding["fact"] for finding in findings if finding["id"] == "federation")
    assert (f"{service}._tcp.example.org" if service else "8448") in fact


# 10 and 11: limits on the way


def test_row_10_the_edge_takes_less_than_synapse(deploy):
    deployment = deploy(homeserver='max_body = "1MiB"')
    findings = deployment.doctor("--token", deployment.user()[1])
    names(findings, "homeserver.upload_limit.edge")
    fact = next(finding["fact"] for finding in findings if finding["id"] == "homeserver.upload_limit.edge")
    assert "60 MiB" in fact and "1 MiB" in fact, "both numbers are told: " + fact


def test_row_11_a_long_poll_is_cut(deploy, synapses):
    upstream = f'{{ servers = ["http://127.0.0.1:{synapses().port}"], response_timeout = "4s" }}'
    deployment = deploy(upstream=upstream)
    names(deployment.doctor("--slow", "--token", deployment.user()[1]), "homeserver.sync.cut")


# 13: who asks


def test_row_13_synapse_does_not_believe_the_edge(deploy):
    deployment = deploy(forwarded="false")
    names(deployment.doctor("--token", deployment.user()[1]), "homeserver.client_address.proxy")


# 14: what must not be open


def test_row_14_the_admin_api_is_open(deploy):
    settings = HEALTHY.replace("{ msc4222", "{ msc4143_enabled: true, msc4222") + (
        "matrix_rtc: { transports: [{ type: livekit, livekit_service_url: 'https://x.example.org' }] }\n")
    sites = SITES.replace('kind     = "synapse"', 'kind     = "http"\nwell_known = true')
    sites = sites.replace("{matrix}", 'homeserver = "https://matrix.example.org:{https}"\n{matrix}')
    names(deploy(settings, sites=sites).doctor(), "homeserver.exposed.open")


def test_row_14_livekit_runs_with_dev(deploy):
    deployment = deploy()
    deployment.livekit.debug = True
    # The edge keeps it closed, which is what counts.
    findings = deployment.doctor()
    names(findings)
    assert "GET /debug/rooms" not in deployment.livekit.requests and "rtc.sfu" in ids(findings, "ok")


def test_row_14_an_invited_admin_is_no_fault(deploy):
    names(deploy(homeserver='admin_from = ["127.0.0.0/8"]').doctor())


# 15: signing in


def test_row_15_login_leads_elsewhere(deploy):
    route = '[sites."matrix.example.org".routes]\n"/_matrix/client/v3/login" = { respond = { status = 404, body = "gone" } }'
    names(deploy(homeserver=route).doctor(), "homeserver.login.other")


# 17: names, ports and certificates


def test_row_17_a_name_that_leads_nowhere(deploy):
    sites = SITES.replace("jwt.matrixrtc.example.org", "jwt.nowhere.invalid")
    deployment = deploy(sites=sites)
    edge = deployment.edge
    known = [f"{name}:{edge.https}:127.0.0.1" for name in ("example.org", "matrix.example.org", "matrixrtc.example.org")]
    command = [BINARY, "doctor", "--json", "--config", edge.folder / "vestibule.toml", "--resolve", f"*:80:127.0.0.1:{edge.http}"]
    for one in known:
        command += ["--resolve", one]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    names(json.loads(done.stdout)["findings"], "dns.missing")


@pytest.mark.parametrize("fault", ["expired", "name", "unknown"])
def test_row_17_a_bad_certificate(deploy, authority, tmp_path, fault):
    stranger = Authority(tmp_path / "stranger", "a CA that nobody knows")
    cert, key = {
        "expired": lambda: authority.issue("matrixrtc.example.org", days=-1),
        "name": lambda: authority.issue("other.example.org"),
        "unknown": lambda: stranger.issue("matrixrtc.example.org"),
    }[fault]()
    sites = SITES.replace('kind     = "livekit"', f'kind     = "livekit"\ntls = {{{{ cert = "{cert}", key = "{key}" }}}}')
    names(deploy(sites=sites).doctor("--ca-file", authority.root), f"tls.inside.{fault}")


def test_row_17_a_port_that_is_closed_from_outside(deploy):
    deployment = deploy()
    names(deployment.doctor("--resolve", f"matrixrtc.example.org:{deployment.edge.https}:127.0.0.2"), "tls.closed")


def test_row_17_an_address_of_another_machine(deploy, authority):
    deployment = deploy()
    web = Web(tls=authority.context("someone.example"), address="127.0.0.2", port=deployment.edge.https)
    findings = deployment.doctor("--resolve", f"matrixrtc.example.org:{deployment.edge.https}:127.0.0.1,127.0.0.2")
    web.stop()
    names(findings, "tls.elsewhere")


def test_row_17_port_80_is_blocked(deploy):
    findings = deploy().doctor("--resolve", f"*:80:127.0.0.1:{closed_port()}")
    names(findings, warns=["http.closed"])


def test_what_is_down_is_said_once(deploy, synapses):
    deployment = deploy()
    deployment.edge.process.kill()
    deployment.edge.process.wait()
    names(deployment.doctor(), "edge.down")
    deployment.stop()
    nowhere = closed_port()
    names(deploy(upstream=f'"http://127.0.0.1:{nowhere}"').doctor(), "services.synapse.down")


# The files


def test_the_files_of_this_repository_are_fine(deploy):
    deployment = deploy()
    file = deployment.folder / "homeserver.yaml"
    addresses = {"wss://matrixrtc.example.org": deployment.jwt.url,
                 "https://jwt.matrixrtc.example.org": deployment.edge.url("jwt.matrixrtc.example.org")}
    rewrite(ROOT / "config" / "homeserver-lines.yaml", file, addresses)
    compose = deployment.folder / "compose.yaml"
    rewrite(ROOT / "config" / "compose.yaml", compose, {"LIVEKIT_URL: wss://matrixrtc.example.org": f"LIVEKIT_URL: {deployment.jwt.url}"})
    findings = deployment.doctor("--homeserver", file, "--compose", compose)
    names(findings)
    assert {"files.homeserver", "files.compose", "files.url", "files.secret"} <= set(ids(findings, "ok"))


# What `init` writes


@pytest.mark.parametrize("layout", [[], ["--one-host"], ["--no-turn"]], ids=["three-names", "one-host", "no-turn"])
def test_what_init_writes_is_all_ok_when_it_runs(tmp_path, layout):
    """The files are used as they are written but for what is this machine's: ports, addresses, the CA, and SQLite."""
    folder, turns = tmp_path / "deployment", "--no-turn" not in layout
    subprocess.run([BINARY, "init", "example.org", "--dir", folder, *layout], check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        sfu = sfu_with(tmp_path, folder, stack)
        url = next(line.split(": ", 1)[1] for line in (folder / "compose.yaml").read_text().splitlines() if "LIVEKIT_URL:" in line)
        jwt = LkJwt(url.split("#")[0].strip(), lambda: f"http://127.0.0.1:{port}", lambda: f"http://127.0.0.1:{sfu['livekit:7880']}")
        stack.callback(jwt.stop)
        registration = folder / "rtc-registration.yaml"
        jwt.tokens = tuple(re.search(f"^{name}: (.+)$", registration.read_text(), re.MULTILINE)[1] for name in ("as_token", "hs_token"))
        rewrite(registration, tmp_path / "registration.yaml", {"lk-jwt-service:8080": f"127.0.0.1:{jwt.port}"})
        lines = (folder / "homeserver-lines.yaml").read_text()
        # The path is that in the container.
        assert "/etc/synapse/rtc-registration.yaml" in lines
        lines = lines.replace("/etc/synapse/rtc-registration.yaml", str(tmp_path / "registration.yaml"))
        port = synapse_with(tmp_path, lines, stack)
        if not turns:
            del sfu["livekit:5349"]
        http, https = edge_with(tmp_path, folder, {"synapse:8008": port, "lk-jwt-service:8080": jwt.port, **sfu}, stack)
        tcp, udp = stack.enter_context(socket.socket()), stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        # The relay's port is that of the site, which here is another one.
        ports = {"tcp_port: 7881": f"tcp_port: {tcp.getsockname()[1]}", "udp_port: 7882": f"udp_port: {udp.getsockname()[1]}"}
        ports |= {"tls_port: 5349": f"tls_port: {sfu['livekit:5349']}"} if turns else {}
        rewrite(folder / "livekit.yaml", tmp_path / "livekit.yaml", ports)
        command = [BINARY, "doctor", "--json", "--config", tmp_path / "vestibule.toml", "--user", "admin"]
        command += ["--resolve", f"*:443:127.0.0.1:{https}", "--resolve", f"*:80:127.0.0.1:{http}"]
        command += ["--livekit", tmp_path / "livekit.yaml", "--compose", folder / "compose.yaml"]
        command += ["--homeserver", folder / "homeserver-lines.yaml"]
        environment = {**os.environ, "VESTIBULE_PASSWORD": "a long password"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    findings = json.loads(done.stdout)["findings"]
    names(findings)
    for wanted in ("rtc.call", "rtc.call_by_homeserver", "rtc.tokens", "rtc.transports", "files.livekit", "files.homeserver",
                   "files.compose", "homeserver.client_address", *(["rtc.turn", "rtc.turn.allocation"] if turns else [])):
        assert wanted in ids(findings, "ok"), wanted


def sfu_with(folder, deployment, stack):
    """LiveKit with the file of `init`, a real one where $LIVEKIT_SERVER names its program; the ports of its signalling and relay."""
    if "LIVEKIT_SERVER" not in os.environ:
        livekit, relay = LiveKit(), Relay()
        livekit.relay = ("turns:turn.example.org:443?transport=tcp", relay.name, relay.password)
        stack.callback(livekit.stop)
        stack.callback(relay.stop)
        return {"livekit:7880": livekit.port, "livekit:5349": relay.port}
    signalling, relay = free_port(), free_port()
    # No STUN server can be asked from here, so the address of this machine is named.
    own = {"port: 7880": f"port: {signalling}", "tcp_port: 7881": f"tcp_port: {free_port()}", "udp_port: 7882": f"udp_port: {free_port()}",
           "use_external_ip: true": "use_external_ip: false\n  node_ip: 127.0.0.1", "api_key: matrix-rtc": f"api_key: {KEY}"}
    if "tls_port" in (deployment / "livekit.yaml").read_text():
        own["tls_port: 5349"] = f"tls_port: {relay}"
    rewrite(deployment / "livekit.yaml", folder / "livekit-server.yaml", own)
    out = stack.enter_context(open(folder / "livekit.out", "w"))
    environment = {**os.environ, "LIVEKIT_KEYS": f"{KEY}: {SECRET}"}
    arguments = [os.environ["LIVEKIT_SERVER"], "--config", folder / "livekit-server.yaml"]
    server = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
    stack.callback(server.wait, 20)
    stack.callback(server.kill)

    def answers():
        assert server.poll() is None, (folder / "livekit.out").read_text()[-4000:]
        return urllib.request.urlopen(f"http://127.0.0.1:{signalling}/", timeout=5).status == 200

    wait_for("LiveKit", answers)
    return {"livekit:7880": signalling, "livekit:5349": relay}


def rewrite(source, target, changes):
    text = source.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    target.write_text(text)


def synapse_with(folder, lines, stack):
    """A Synapse with lines of `init` over what it generates, as the container runs it; its port."""
    port = free_port()
    run = [sys.executable, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
    more = ["--server-name", "example.org", "--generate-config", "--report-stats=no", "--data-directory", "."]
    subprocess.run([*run, *more], check=True, capture_output=True, cwd=folder)
    (folder / "lines.yaml").write_text(lines.replace("port: 8008", f"port: {port}"))
    (folder / "more.yaml").write_text("database: { name: sqlite3, args: { database: db.sqlite } }\ntrusted_key_servers: []\n"
                                      "enable_registration: true\nenable_registration_without_verification: true\nbcrypt_rounds: 4\n")
    out = stack.enter_context(open(folder / "out", "w"))
    synapse = subprocess.Popen([*run, "-c", "lines.yaml", "-c", "more.yaml"], stdout=out, stderr=out, cwd=folder)
    stack.callback(synapse.wait, 20)
    stack.callback(synapse.terminate)

    def answers():
        assert synapse.poll() is None, (folder / "out").read_text()[-4000:]
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200

    wait_for("Synapse", answers)
    body = {"username": "admin", "password": "a long password", "auth": {"type": "m.login.dummy"}}
    register = urllib.request.Request(f"http://127.0.0.1:{port}/_matrix/client/v3/register", json.dumps(body).encode())
    assert urllib.request.urlopen(register).status == 200
    return port


def edge_with(folder, deployment, upstreams, stack):
    """The edge with the file of `init`; its ports. Its public port stays 443, as the file has it."""
    http, https = free_port(), free_port()
    config = folder / "vestibule.toml"
    rewrite(deployment / "vestibule.toml", config, {name: f"127.0.0.1:{port}" for name, port in upstreams.items()})
    here = f'[listen]\nhttp = ["127.0.0.1:{http}"]\nhttps = ["127.0.0.1:{https}"]\n[storage]\npath = "{folder}/state"\n'
    config.write_text(f'{config.read_text()}\n{here}[tls]\ncertificates = "internal"\n[admin]\nlisten = "unix:{folder}/admin.sock"\n')
    err = folder / "edge.err"
    edge = subprocess.Popen([BINARY, "run", "--config", config], stderr=stack.enter_context(open(err, "w")))
    stack.callback(edge.wait, 15)
    stack.callback(edge.terminate)
    wait_for("the edge", lambda: edge.poll() is None and '"started"' in err.read_text(), 20)
    return http, https
