"""A real Synapse behind the edge: what a client does in its first hour, over HTTP/1.1 and HTTP/2; as processes, and in the
containers of the drop-in with PostgreSQL."""

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
import threading
import time
import uuid

import httpx
import pytest

from conftest import wait_for


@pytest.fixture(scope="module", params=["processes", "containers"])
def edge(request):
    """Whatever stands before Synapse: it knows what Synapse has logged as well."""
    if request.param == "containers":
        return request.getfixturevalue("stack")
    edge = request.getfixturevalue("edge")
    edge.homeserver_log = request.getfixturevalue("synapse").homeserver_log
    return edge


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def client(edge, request):
    context = ssl.create_default_context(cafile=str(edge.root))
    two = request.param == "HTTP/2"
    with httpx.Client(base_url=edge.url("matrix.example.org"), verify=context, http1=not two, http2=two, timeout=60) as client:
        assert client.get("/_matrix/client/versions").http_version == request.param
        yield client


def register(client):
    name = f"u{uuid.uuid4().hex[:12]}"
    body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
    answer = client.post("/_matrix/client/v3/register", json=body)
    assert answer.status_code == 200, answer.text
    return name, {"Authorization": f"Bearer {answer.json()['access_token']}"}


def test_register_login_room_message_and_sync(client):
    name, user = register(client)
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": "a long password"}
    assert client.post("/_matrix/client/v3/login", json=body).status_code == 200
    room = client.post("/_matrix/client/v3/createRoom", json={"room_alias_name": name}, headers=user).json()["room_id"]
    since = client.get("/_matrix/client/v3/sync", params={"timeout": 0}, headers=user).json()["next_batch"]
    seen = {}

    def poll():
        params = {"since": since, "timeout": 20_000 + os.getpid() % 1000}
        answer = client.get("/_matrix/client/v3/sync", params=params, headers=user)
        seen["at"], seen["body"] = time.monotonic(), answer.json()

    polling = threading.Thread(target=poll)
    polling.start()
    time.sleep(1)
    sent = time.monotonic()
    path = f"/_matrix/client/v3/rooms/{room.replace('!', '%21').replace(':', '%3A')}/send/m.room.message/{uuid.uuid4().hex}"
    assert client.put(path, json={"msgtype": "m.text", "body": "hello"}, headers=user).status_code == 200
    polling.join(30)
    events = seen["body"]["rooms"]["join"][room]["timeline"]["events"]
    assert events[-1]["content"]["body"] == "hello"
    assert seen["at"] - sent < 1, "the long poll ends when there is something, and not later"


def test_media_comes_back_byte_for_byte(client):
    _, user = register(client)
    media = os.urandom(45 * 1024 * 1024)
    headers = {**user, "Content-Type": "application/octet-stream"}
    uploaded = client.post("/_matrix/media/v3/upload", content=media, headers=headers)
    assert uploaded.status_code == 200, uploaded.text
    server, media_id = uploaded.json()["content_uri"].removeprefix("mxc://").split("/")
    answer = client.get(f"/_matrix/client/v1/media/download/{server}/{media_id}", headers=user)
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(media).digest()


def test_paths_reach_synapse_as_they_were_written(client):
    _, user = register(client)
    alias = f"a{uuid.uuid4().hex[:8]}"
    room = client.post("/_matrix/client/v3/createRoom", json={"room_alias_name": alias}, headers=user).json()["room_id"]
    found = client.get(f"/_matrix/client/v3/directory/room/%23{alias}%3Aexample.org", headers=user)
    assert found.json()["room_id"] == room
    # A decoded slash would be another path, and not Synapse's answer to this one.
    slash = client.get("/_matrix/client/v3/directory/room/%23a%2Fb%3Aexample.org", headers=user)
    assert slash.json()["errcode"] == "M_NOT_FOUND"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_nothing_on_the_way_makes_a_path_prettier(edge, version):
    for path in ("/_matrix/client/%76ersions", "/_matrix/client//versions", "/_matrix/client/./versions", "//_matrix/client/versions"):
        name = f"matrix.example.org:{edge.https}"
        command = ["curl", "-sS", version, "--path-as-is", "--cacert", edge.root, "--resolve", f"{name}:127.0.0.1", f"https://{name}{path}"]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
        assert answer["errcode"] == "M_UNRECOGNIZED", path


def test_the_admin_api_is_closed(client):
    answer = client.get("/_synapse/admin/v1/server_version")
    assert (answer.status_code, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_an_upload_that_is_too_large_is_told(edge, version, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(bytes(65 * 1024 * 1024))
    name = f"matrix.example.org:{edge.https}"
    command = ["curl", "-sS", version, "-i", "--cacert", edge.root, "--resolve", f"{name}:127.0.0.1", "-H", "Expect:"]
    command += ["--data-binary", f"@{large}", f"https://{name}/_matrix/media/v3/upload"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    head, _, body = answer.partition("\n\n") if "\n\n" in answer else answer.partition("\r\n\r\n")
    assert " 413" in head.splitlines()[0], answer
    assert "access-control-allow-origin: *" in head.lower()
    assert json.loads(body)["errcode"] == "M_TOO_LARGE"


def test_a_busy_sync_comes_whole_in_every_coding(client):
    _, user = register(client)
    room = client.post("/_matrix/client/v3/createRoom", json={}, headers=user).json()["room_id"]
    for n in range(40):
        body = {"msgtype": "m.text", "body": f"message {n} " + "lorem ipsum " * 20}
        client.put(f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{n}-{uuid.uuid4().hex}", json=body, headers=user)
    said = {}
    for n, coding in enumerate(("identity", "gzip", "br", "zstd")):
        params = {"timeout": n, "filter": json.dumps({"room": {"timeline": {"limit": 50}}})}
        answer = client.get("/_matrix/client/v3/sync", params=params, headers={**user, "Accept-Encoding": coding})
        assert answer.headers.get("content-encoding", "identity") == coding
        assert "Accept-Encoding" in answer.headers["vary"]
        said[coding] = [event["event_id"] for event in answer.json()["rooms"]["join"][room]["timeline"]["events"]]
        assert coding == "identity" or answer.num_bytes_downloaded < len(answer.content) / 2
    assert len(said["identity"]) > 40 and all(events == said["identity"] for events in said.values())


def test_synapse_sees_who_asks_and_nobody_else(edge, client):
    for _ in range(2):
        client.get("/_matrix/client/versions", headers={"X-Forwarded-For": "203.0.113.77"})
    # Synapse writes its log a few seconds late.
    wait_for("the line of the request", lambda: "/_matrix/client/versions" in edge.homeserver_log(), 30)
    assert "203.0.113.77" not in edge.homeserver_log()


def test_our_well_known_goes_before_synapses(edge, client):
    document = client.get("/.well-known/matrix/client").json()
    assert document["m.homeserver"]["base_url"] == edge.url("matrix.example.org")


def test_transports_are_filled_in(edge, client):
    # In the drop-in Synapse has them itself, and the edge passes what it says.
    _, user = register(client)
    for path in ("unstable/org.matrix.msc4143", "v1"):
        url = f"/_matrix/client/{path}/rtc/transports"
        answer = client.get(url, headers=user)
        assert answer.status_code == 200, answer.text
        assert answer.json()["rtc_transports"][0]["livekit_service_url"] == edge.url("jwt.matrixrtc.example.org")
        assert client.get(url, headers={"Authorization": "Bearer nonsense"}).status_code == 401


def test_nio_discovers_and_logs_in(edge, client):
    import nio

    name, _ = register(client)

    async def run():
        context = ssl.create_default_context(cafile=str(edge.root))
        found = nio.AsyncClient(edge.url("example.org"), ssl=context)
        discovered = await found.discovery_info()
        await found.close()
        assert isinstance(discovered, nio.DiscoveryInfoResponse), discovered
        session = nio.AsyncClient(discovered.homeserver_url, f"@{name}:example.org", ssl=context)
        logged_in = await session.login("a long password")
        await session.close()
        assert isinstance(logged_in, nio.LoginResponse), logged_in

    asyncio.run(run())


def test_no_secret_is_in_the_log(edge, client):
    _, user = register(client)
    token = user["Authorization"].removeprefix("Bearer ")
    client.get("/_matrix/client/v3/account/whoami", params={"access_token": token})
    time.sleep(0.3)
    assert token not in edge.log() and "access_token=REDACTED" in edge.log()
