"""Call tokens by way of the homeserver (MSC4195): what `vestibule init` writes, read by a real Synapse; the service behind it is a
stand-in, which checks hs_token and X-Matrix-User-Identifier and asks by its as_token who is in a room. The token is confirmed by
LiveKit: a real one where $LIVEKIT_SERVER names its program, and a stand-in elsewhere."""

import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.request

import httpx
import pytest

from conftest import BINARY, FOR_TESTS, Edge, free_port, wait_for
from standins import KEY, SECRET, STABLE, UNSTABLE, LiveKit, LkJwt, digest, jwt_claims

SFU = "wss://matrixrtc.example.org"


class RealLiveKit:
    """A LiveKit of its own, without media."""

    def __init__(self, folder):
        self.port = free_port()
        config = folder / "livekit.yaml"
        config.write_text(f"port: {self.port}\nbind_addresses: ['127.0.0.1']\nkeys: {{ {KEY}: {SECRET} }}\nroom: {{ auto_create: false }}\n"
                          f"rtc: {{ tcp_port: {free_port()}, udp_port: {free_port()}, use_external_ip: false, node_ip: 127.0.0.1 }}\n")
        self.process = subprocess.Popen([os.environ["LIVEKIT_SERVER"], "--config", config], stdout=open(folder / "livekit.out", "w"),
                                        stderr=subprocess.STDOUT)
        wait_for("LiveKit", lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).status == 200)

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


class FromInit:
    """Synapse with the lines and the registration that `init` writes; the port, the database and the addresses of this machine
    are the test's."""

    def __init__(self, folder, jwt_port):
        self.folder, self.port = folder, free_port()
        subprocess.run([BINARY, "init", "example.org", "--dir", folder / "deployment"], check=True, capture_output=True)
        run = [sys.executable, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
        more = ["--server-name", "example.org", "--generate-config", "--report-stats=no", "--data-directory", "."]
        subprocess.run([*run, *more], check=True, capture_output=True, cwd=folder)
        registration = (folder / "deployment/rtc-registration.yaml").read_text()
        self.tokens = re.findall("^[ah]s_token: (.+)$", registration, re.MULTILINE)
        (folder / "registration.yaml").write_text(registration.replace("http://lk-jwt-service:8080", f"http://127.0.0.1:{jwt_port}"))
        lines = (folder / "deployment/homeserver-lines.yaml").read_text()
        lines = lines.replace("port: 8008", f"port: {self.port}").replace("/etc/synapse/rtc-registration.yaml", f"{folder}/registration.yaml")
        (folder / "lines.yaml").write_text(lines)
        tests = "\n".join(line for line in FOR_TESTS.splitlines() if not line.startswith("public_baseurl"))
        (folder / "more.yaml").write_text(f"database: {{ name: sqlite3, args: {{ database: db.sqlite }} }}\n{tests}\n")
        self.out = open(folder / "out", "w")
        self.process = subprocess.Popen([*run, "-c", "lines.yaml", "-c", "more.yaml"], stdout=self.out, stderr=self.out, cwd=folder)
        wait_for("Synapse", self.healthy)

    def healthy(self):
        assert self.process.poll() is None, (self.folder / "out").read_text()[-4000:]
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200

    def log(self):
        return "".join(path.read_text() for path in (self.folder / "out", self.folder / "homeserver.log") if path.exists())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


SITES = """
[matrix]
server_name = "example.org"
rtc_service = {{ url = "wss://matrixrtc.example.org", livekit_service_url = "https://jwt.matrixrtc.example.org" }}
[sites."example.org"]
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."jwt.matrixrtc.example.org"]
kind     = "lk-jwt"
upstream = "http://127.0.0.1:{jwt}"
[sites."matrixrtc.example.org"]
kind     = "livekit"
upstream = "http://127.0.0.1:{livekit}"
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    livekit = RealLiveKit(folder) if "LIVEKIT_SERVER" in os.environ else LiveKit()
    service = LkJwt(SFU, lambda: f"http://127.0.0.1:{synapse.port}", lambda: f"http://127.0.0.1:{livekit.port}")
    synapse = FromInit(folder, service.port)
    service.tokens = synapse.tokens
    (folder / "edge").mkdir()
    edge = Edge(folder / "edge", SITES.format(synapse=synapse.port, jwt=service.port, livekit=livekit.port))
    yield edge
    secrets = synapse.tokens
    synapse.stop()
    assert edge.stop() == 0
    livekit.stop()
    service.stop()
    assert len(secrets) == 2 and not any(secret in edge.log() + synapse.log() for secret in secrets), "a token is in a log"


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def client(deployment, request):
    two = request.param == "HTTP/2"
    context = ssl.create_default_context(cafile=str(deployment.root))
    with httpx.Client(base_url=deployment.url("matrix.example.org"), verify=context, http1=not two, http2=two, timeout=60) as client:
        assert client.get("/_matrix/client/versions").http_version == request.param
        client.edge, client.context = deployment, context
        yield client


def register(client):
    body = {"username": f"u{os.urandom(6).hex()}", "password": "a long password", "auth": {"type": "m.login.dummy"}}
    answer = client.post("/_matrix/client/v3/register", json=body).json()
    return answer["user_id"], {"Authorization": f"Bearer {answer['access_token']}", "Origin": "https://app.example"}


@pytest.mark.parametrize("prefix", [STABLE, UNSTABLE])
def test_a_token_by_the_homeserver_is_taken_by_livekit(client, prefix):
    user, headers = register(client)
    other, others = register(client)
    room = client.post("/_matrix/client/v3/createRoom", json={}, headers=headers).json()["room_id"]
    transports = client.get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", headers=headers).json()
    url = transports["rtc_transports"][0]["url"]
    assert url == SFU and transports["rtc_transports"][0]["livekit_service_url"] == "https://jwt.matrixrtc.example.org"
    body = {"url": url, "room_id": room, "slot_id": "m.call#ROOM", "member_id": "member"}
    # What a client says of itself does not arrive.
    answer = client.post(f"{prefix}get_token", json=body, headers={**headers, "X-Matrix-User-Identifier": other})
    assert answer.status_code == 200 and answer.headers.get_list("access-control-allow-origin") == ["*"], answer.text
    claims = jwt_claims(answer.json()["jwt"])
    assert claims["sub"] == digest(user, "member") and claims["video"]["room"] == digest(room, "m.call#ROOM")
    sfu = f"{client.edge.url('matrixrtc.example.org')}/rtc/validate"
    confirmed = httpx.get(sfu, params={"access_token": answer.json()["jwt"]}, verify=client.context)
    assert confirmed.status_code == 200, confirmed.text
    assert httpx.get(sfu, params={"access_token": answer.json()["jwt"] + "x"}, verify=client.context).status_code == 401
    for changed, header, status, errcode in [
        ({}, {}, 401, "M_MISSING_TOKEN"),
        ({}, others, 403, "M_FORBIDDEN"),
        ({"url": url + "/"}, headers, 400, "M_INVALID_PARAM"),
    ]:
        refused = client.post(f"{prefix}get_token", json={**body, **changed}, headers={"Origin": "https://app.example", **header})
        assert (refused.status_code, refused.json()["errcode"]) == (status, errcode), refused.text
        assert refused.headers.get_list("access-control-allow-origin") == ["*"]
    preflight = client.options(f"{prefix}get_token", headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"})
    assert preflight.is_success
    # The same paths are closed under the service's own name.
    own = httpx.post(f"{client.edge.url('jwt.matrixrtc.example.org')}{prefix}get_token", json=body, verify=client.context)
    assert own.status_code == 404


def test_the_old_way_is_still_served(client):
    user, headers = register(client)
    room = client.post("/_matrix/client/v3/createRoom", json={}, headers=headers).json()["room_id"]
    openid = client.post(f"/_matrix/client/v3/user/{user}/openid/request_token", json={}, headers=headers).json()
    service = client.edge.url("jwt.matrixrtc.example.org")
    body = {"room": room, "openid_token": openid, "device_id": "D"}
    answer = httpx.post(f"{service}/sfu/get", json=body, verify=client.context)
    assert answer.status_code == 200 and answer.json()["url"] == SFU
    sfu = f"{client.edge.url('matrixrtc.example.org')}/rtc/validate"
    assert httpx.get(sfu, params={"access_token": answer.json()["jwt"]}, verify=client.context).status_code == 200
