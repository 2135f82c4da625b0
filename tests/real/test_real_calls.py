"""Calls with the real LiveKit and lk-jwt-service: two Chromium pages that see and hear each other through the edge.

Each test has a network namespace of its own, in which the edge has ports 80 and 443 as on a real machine. How often the
outages of `test_livekit_comes_back…` are repeated is said by CALL_RUNS (default 1)."""

import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from conftest import BINARY
from realcalls import TURN, Browsers, Deployment, Namespace, needs, wait_for_media

RELAY = {"enabled": True, "domain": "turn.example.org", "tls_port": 5349, "external_tls": True, "bind_addresses": ["127.0.0.1"]}
HTTP1 = ["--disable-http2"]


def local_relay():
    return {**RELAY, "allow_restricted_peer_cidrs": ["127.0.0.1/32"]}


@pytest.fixture
def call(tmp_path, request):
    """Starts deployments and browsers, and ends them."""
    running = []

    def start(pages=True, **keywords):
        needs("livekit-server", *(["lk-jwt-service"] if keywords.get("synapse") else []))
        deployment = Deployment(tmp_path, **keywords)
        running.append(deployment)
        browsers = Browsers(tmp_path, deployment.edge.root, deployment.namespace)
        running.append(browsers)
        return deployment, browsers

    yield start
    for one in reversed(running):
        one.stop()


@pytest.mark.parametrize("layout, protocol", [("three", "h1"), ("three", "h2"), ("one", "h1"), ("one", "h2")])
def test_two_pages_see_and_hear_each_other(call, layout, protocol):
    deployment, browsers = call(layout=layout)
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page), args=HTTP1 if protocol == "h1" else [])
    _, states = wait_for_media(browsers, ("a", "b"), 60, sound=True)
    for page in ("a", "b"):
        assert states[page]["connection"] == "connected" and states[page]["published"] == 2


def test_a_call_with_tokens_of_the_service(call):
    """`/sfu/get` and `/get_token` as clients ask for them, `/delegate_delayed_leave` and `/sfu_webhook`."""
    deployment, browsers = call(synapse=True)
    with deployment.namespace:
        passes = {"a": sfu_get(deployment, "alice"), "b": get_token(deployment, "bob")}
    for page, answer in passes.items():
        assert answer["url"] == deployment.sfu
        browsers.join(page, answer["url"], answer["jwt"])
    wait_for_media(browsers, ("a", "b"), 60, sound=True)
    # What else the service has reaches it: it is the one who refuses.
    with deployment.namespace:
        for path, status in (("/delegate_delayed_leave", 400), ("/sfu_webhook", None)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(deployment, f"{deployment.service}{path}", {})
            assert refused.value.code == status or status is None and refused.value.code in (400, 401, 403)


def ask(deployment, url, body=None, token=None):
    context = ssl.create_default_context(cafile=str(deployment.edge.root))
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30, context=context))


def openid(deployment, name):
    base = "https://matrix.example.org/_matrix/client/v3"
    user = ask(deployment, f"{base}/register", {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}})
    token = ask(deployment, f"{base}/user/{user['user_id']}/openid/request_token", {}, user["access_token"])
    return user, token


def sfu_get(deployment, name):
    user, token = openid(deployment, name)
    return ask(deployment, f"{deployment.service}/sfu/get", {"room": "!call:example.org", "openid_token": token, "device_id": user["device_id"]})


def get_token(deployment, name):
    user, token = openid(deployment, name)
    member = {"id": f"{name}-in-the-call", "claimed_user_id": user["user_id"], "claimed_device_id": user["device_id"]}
    body = {"room_id": "!call:example.org", "slot_id": "m.call#ROOM", "openid_token": token, "member": member}
    return ask(deployment, f"{deployment.service}/get_token", body)


def test_media_by_the_relay(call):
    deployment, browsers = call(turn=local_relay(), sites=TURN)
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page), relay=True)
    _, states = wait_for_media(browsers, ("a", "b"), 60, sound=True)
    for page in ("a", "b"):
        assert states[page]["pairs"] and all(pair == ["relay", "tls", "turns:turn.example.org:443?transport=tcp"] for pair in states[page]["pairs"])


@pytest.mark.parametrize("site", [True, False])
def test_a_call_where_only_443_can_be_reached(call, tmp_path, site):
    """Browsers on another machine (a namespace), from which nothing but 443/tcp of the edge can be reached."""
    needs("livekit-server")
    ours, theirs = "10.79.0.1", "10.79.0.2"
    turn = {**RELAY, "allow_restricted_peer_cidrs": [f"{ours}/32"]}

    def connect(namespace):
        namespace.ip("link", "add", "wan", "type", "veth", "peer", "name", "lan", "netns", far.name)
        for one, name, address in ((namespace, "wan", ours), (far, "lan", theirs)):
            one.ip("addr", "add", f"{address}/24", "dev", name)
            one.ip("link", "set", name, "up")
        rules = "table inet only { chain in { type filter hook input priority 0; iifname wan tcp dport 443 accept; iifname wan drop; }; }"
        namespace.run("nft", rules)

    far = Namespace()
    try:
        deployment, _ = call(turn=turn, sites=TURN if site else "", node_ip=ours, listen=("127.0.0.1", ours), prepare=connect)
        browsers = Browsers(tmp_path, deployment.edge.root, far, ours)
        try:
            far.run("timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{ours}/443")
            assert subprocess.run(["ip", "netns", "exec", far.name, "timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{ours}/7881"], capture_output=True).returncode
            if site:
                for page in ("a", "b"):
                    browsers.join(page, deployment.sfu, deployment.token(page))
                _, states = wait_for_media(browsers, ("a", "b"), 60, sound=True)
                # LiveKit sees the relay at another of its own addresses, which makes the candidate a peer-reflexive one.
                assert all(pair[0] in ("relay", "prflx") for page in states for pair in states[page]["pairs"]), states
            else:
                with pytest.raises(AssertionError, match="pc connection|ConnectionError|Timeout"):
                    browsers.join("a", deployment.sfu, deployment.token("a"))
        finally:
            browsers.stop()
    finally:
        far.remove()


def test_the_edge_is_reloaded_killed_and_restarted_during_a_call(call):
    deployment, browsers = call()
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page))
    wait_for_media(browsers, ("a", "b"), 60)
    before = {page: browsers.state(page)["events"] for page in ("a", "b")}
    # A reload raises no event at either client.
    config = deployment.edge.folder / "vestibule.toml"
    config.write_text(config.read_text() + "\n[log]\nlevel = \"debug\"\n")
    with deployment.namespace:
        subprocess.run([BINARY, "reload", "--config", config], check=True, capture_output=True)
    wait_for_media(browsers, ("a", "b"), 20)
    time.sleep(3)
    assert {page: browsers.state(page)["events"] for page in ("a", "b")} == before
    for end in ("TERM", "KILL"):
        deployment.restart_edge(end)
        took, states = wait_for_media(browsers, ("a", "b"), 30)
        print(f"edge ended by {end}: pictures move after {took:.1f} s", states)
        for page in ("a", "b"):
            assert "Disconnected" not in [name for _, name in states[page]["events"]]


@pytest.mark.parametrize("outage", [0.2, 2, 8, 30])
def test_livekit_comes_back_and_so_does_the_picture(call, outage):
    deployment, browsers = call()
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page))
    wait_for_media(browsers, ("a", "b"), 60)
    runs = int(os.environ.get("CALL_RUNS", "1"))
    times = []
    for _ in range(runs):
        deployment.livekit.kill()
        time.sleep(outage)
        with deployment.namespace:
            deployment.livekit.start()
        began = time.monotonic()
        wait_for_reconnected(browsers, 45)
        wait_for_media(browsers, ("a", "b"), 45)
        times.append(round(time.monotonic() - began, 1))
        print(f"outage of {outage} s: pictures move after {times[-1]} s", flush=True)
        time.sleep(3)
    assert max(times) <= 12, times


def wait_for_reconnected(browsers, seconds):
    until = time.monotonic() + seconds
    while True:
        states = [browsers.state(page) for page in ("a", "b")]
        if all(state["connection"] == "connected" and state["published"] == 2 for state in states):
            return
        assert time.monotonic() < until, states
        time.sleep(0.2)
