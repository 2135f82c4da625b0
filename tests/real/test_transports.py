"""The transports endpoint in front of a real Synapse in each of its states: switched off, with a list, with an empty list; on
the path of today and on the stable one."""

import json
import ssl
import uuid

import httpx
import pytest

from conftest import Edge, Synapse
from standins import Meddler

PATHS = ["/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", "/_matrix/client/v1/rtc/transports"]
OWN = "https://synapse-says.example.org"
STATES = {
    "off": "",
    "empty": "experimental_features: { msc4143_enabled: true }",
    "list": f"experimental_features: {{ msc4143_enabled: true }}\nmatrix_rtc: {{ transports: [{{ type: livekit, livekit_service_url: '{OWN}' }}] }}",
}
SITES = """
[matrix]
server_name = "example.org"
rtc_transports = "{policy}"
[sites."example.org"]
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."jwt.example.org"]
kind     = "lk-jwt"
upstream = "http://127.0.0.1:1"
"""


@pytest.fixture(scope="module", params=STATES)
def state(request, tmp_path_factory):
    server = Synapse(tmp_path_factory.mktemp("synapse"), STATES[request.param])
    yield request.param, server
    server.stop()


@pytest.fixture(params=["fill", "pass"])
def client(state, request, tmp_path):
    _, synapse = state
    edge = Edge(tmp_path, SITES.format(policy=request.param, synapse=synapse.port))
    context = ssl.create_default_context(cafile=str(edge.root))
    with httpx.Client(base_url=edge.url("matrix.example.org"), verify=context, timeout=60) as client:
        client.policy, client.ours = request.param, edge.url("jwt.example.org")
        yield client
    assert edge.stop() == 0


def token(client):
    body = {"username": f"u{uuid.uuid4().hex[:12]}", "password": "a long password", "auth": {"type": "m.login.dummy"}}
    return client.post("/_matrix/client/v3/register", json=body).json()["access_token"]


def test_every_state_with_and_without_a_token(state, client):
    name, _ = state
    good = token(client)
    for path in PATHS:
        # Synapse 1.163 does not know the stable path, whatever its flags say.
        knows = name != "off" and path == PATHS[0]
        for authorization, refused in [(None, "M_MISSING_TOKEN"), ("Bearer nonsense", "M_UNKNOWN_TOKEN"), (f"Bearer {good}", None)]:
            headers = {"Origin": "https://app.example", **({"Authorization": authorization} if authorization else {})}
            answer = client.get(path, headers=headers)
            said = (client.policy, path, authorization, answer.status_code, answer.text)
            assert answer.headers.get_list("access-control-allow-origin") == ["*"], said
            if client.policy == "pass" and not knows:
                assert (answer.status_code, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED"), said
            elif refused:
                assert (answer.status_code, answer.json()["errcode"]) == (401, refused), said
            else:
                urls = [one["livekit_service_url"] for one in answer.json().get("rtc_transports", [])]
                stable = [one["livekit_service_url"] for one in answer.json().get("transports", [])]
                assert stable == (urls if path == PATHS[1] else []), said
                # What Synapse lists on the unstable path is its word on the other one as well.
                own = name == "list" and (knows or client.policy == "fill")
                expected = [OWN] if own else [client.ours] if client.policy == "fill" else []
                assert (answer.status_code, urls) == (200, expected), said
        preflight = client.options(path, headers={"Origin": "https://app.example", "Access-Control-Request-Method": "GET",
                                                  "Access-Control-Request-Headers": "authorization"})
        assert preflight.is_success and preflight.headers.get_list("access-control-allow-origin") == ["*"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        by_query = client.get(path, params={"access_token": good})
        assert by_query.status_code == (200 if client.policy == "fill" or knows else 404)


def test_a_token_is_asked_about_once_in_some_seconds(state, tmp_path):
    name, synapse = state
    if name != "off":
        pytest.skip("Synapse judges the token itself")
    counter = Meddler(synapse.port)
    edge = Edge(tmp_path, SITES.format(policy="fill", synapse=counter.port))
    context = ssl.create_default_context(cafile=str(edge.root))
    with httpx.Client(base_url=edge.url("matrix.example.org"), verify=context, timeout=60) as client:
        mine, other = token(client), token(client)
        for one in (mine, mine, mine, other, "nonsense", "nonsense"):
            client.get(PATHS[0], headers={"Authorization": f"Bearer {one}"})
    asked = [request for request in counter.requests if request.endswith("whoami")]
    # Once for each good token; a bad one is never remembered.
    assert len(asked) == 4, json.dumps(counter.requests)
    assert edge.stop() == 0
    counter.stop()
