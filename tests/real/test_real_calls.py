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

from conftest import BINARY, wait_for
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
        needs("livekit-server", *(["lk-jwt-service"] if "synapse" in keywords else []))
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
    deployment, browsers = call(synapse="")
    with deployment.namespace:
        passes = {"a": sfu_get(deployment, "alice"), "b": get_token(deployment, "bob")}
    for page, answer in passes.items():
        assert answer["url"] == deployment.sfu
        browsers.join(page, answer["url"], answer["jwt"])
    wait_for_media(browsers, ("a", "b"), 60, sound=True)
    # What else the service has reaches it: it is the one who refuses. A webhook that nobody has signed it ignores with 200.
    with deployment.namespace:
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(deployment, f"{deployment.service}/delegate_delayed_leave", {})
        assert refused.value.code == 400 and json.load(refused.value)["errcode"] == "M_BAD_JSON"
        with post(deployment, f"{deployment.service}/sfu_webhook", {}) as answer:
            assert (answer.status, answer.read()) == (200, b"")
    assert "SFU webhook error" in deployment.jwt.log.read_text()


def post(deployment, url, body=None, token=None):
    context = ssl.create_default_context(cafile=str(deployment.edge.root))
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30, context=context)


def ask(deployment, url, body=None, token=None):
    with post(deployment, url, body, token) as answer:
        return json.load(answer)


def register(deployment, name):
    body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
    return ask(deployment, "https://matrix.example.org/_matrix/client/v3/register", body)


def openid(deployment, name):
    base, user = "https://matrix.example.org/_matrix/client/v3", register(deployment, name)
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


# Members may announce themselves (state level 0), and whoever is gone leaves by a delayed event.
FOR_CALLS = "max_event_delay_duration: 24h\nexperimental_features: { msc4222_enabled: true }"


@pytest.mark.parametrize("found, layout, protocol", [("homeserver", "three", "h2"), ("well-known", "one", "h1")])
def test_element_call_shows_two_videos(call, found, layout, protocol):
    """Element Call in the host of a widget: it finds the transport that the edge fills in, or the well-known document."""
    policy = 'rtc_transports = "pass"' if found == "well-known" else ""
    deployment, browsers = call(synapse=FOR_CALLS, matrix=policy, layout=layout)
    with deployment.namespace:
        users = {page: register(deployment, name) for page, name in (("a", "alice"), ("b", "bob"))}
        base = "https://matrix.example.org/_matrix/client/v3"
        levels = {"events": {"org.matrix.msc3401.call.member": 0}}
        wanted = {"preset": "public_chat", "power_level_content_override": levels}
        room = ask(deployment, f"{base}/createRoom", wanted, users["a"]["access_token"])["room_id"]
        ask(deployment, f"{base}/join/{room}", {}, users["b"]["access_token"])
    for page, user in users.items():
        session = {"token": user["access_token"], "user": user["user_id"], "device": user["device_id"], "room": room}
        browsers.open(page, "https://app.example.org/widget.html", args=HTTP1 if protocol == "h1" else [])
        browsers.ask("evaluate", page=page, code=f"call({json.dumps(session)})")
        click(browsers, page, "lobby_joinCall")
    wait_for("two videos on both sides", lambda: all(videos(browsers, page) == 2 for page in users), 90)
    assert all(browsers.ask("evaluate", page=page, code="session.found") == found for page in users)
    with deployment.namespace:
        # A restart of Synapse is no event of the call: media goes on, and both are members still.
        deployment.synapse.stop()
        assert all(videos(browsers, page) == 2 for page in users)
        deployment.synapse.start()
        assert len(members(deployment, room, users["a"])) == 2
        assert all(videos(browsers, page) == 2 for page in users)
        # Who leaves ends the membership, and who dies leaves by the delayed event.
        click(browsers, "b", "incall_leave")
        wait_for("the end of a membership", lambda: len(members(deployment, room, users["a"])) == 1, 30)
        browsers.ask("crash", page="a")
        wait_for("the delayed event", lambda: not members(deployment, room, users["a"]), 60)


def click(browsers, page, test_id):
    """Clicks what Element Call shows under this name."""
    code = f"""(() => {{ const found = document.querySelector('[data-testid="{test_id}"]:not([disabled])'); found?.click(); return !!found }})()"""
    wait_for(test_id, lambda: in_call(browsers, page, code), 60)


def in_call(browsers, page, code):
    return browsers.ask("evaluateIn", page=page, frame="/call/index.html", code=code)


def videos(browsers, page):
    """How many videos move."""
    return in_call(browsers, page, """(async () => {
        const all = [...document.querySelectorAll("video")].filter((video) => video.videoWidth);
        const before = all.map((video) => video.currentTime);
        await new Promise((resolve) => setTimeout(resolve, 500));
        return all.filter((video, index) => video.currentTime > before[index]).length;
    })()""")


def members(deployment, room, user):
    """The memberships of a call that last."""
    state = ask(deployment, f"https://matrix.example.org/_matrix/client/v3/rooms/{room}/state", token=user["access_token"])
    return [event["state_key"] for event in state if event["type"] == "org.matrix.msc3401.call.member" and event["content"]]


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


def test_doctor_sees_where_livekit_takes_media(call):
    """The name leads to a public address; LiveKit tells clients that of its container, and then the public one."""
    public, private = "198.51.100.7", "10.79.0.5"

    def prepare(namespace):
        namespace.ip("addr", "add", f"{public}/32", "dev", "lo")
        namespace.ip("link", "add", "container", "type", "veth", "peer", "name", "bridge")
        namespace.ip("addr", "add", f"{private}/24", "dev", "container")
        for name in ("container", "bridge"):
            namespace.ip("link", "set", name, "up")

    deployment, _ = call(synapse="", node_ip=private, listen=("127.0.0.1", public), prepare=prepare)
    with deployment.namespace:
        register(deployment, "alice")
    found = media_candidates(deployment, public)
    assert found["id"] == "rtc.media.candidates.private" and found["verdict"] == "fail" and private in found["fact"], found
    assert "use_external_ip" in found["fix"]
    deployment.livekit.stop()
    deployment.node_ip = public
    with deployment.namespace:
        deployment.start_livekit()
    found = media_candidates(deployment, public)
    assert (found["id"], found["verdict"]) == ("rtc.media.candidates", "ok") and public in found["fact"], found


def media_candidates(deployment, address):
    command = [BINARY, "doctor", "--json", "--config", deployment.edge.folder / "vestibule.toml", "--user", "alice"]
    command += ["--resolve", f"*:443:{address}:443", "--resolve", f"*:80:{address}:80"]
    with deployment.namespace:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "VESTIBULE_PASSWORD": "a long password"})
    findings = json.loads(done.stdout)["findings"]
    return next(finding for finding in findings if finding["id"].startswith("rtc.media.candidates"))


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_the_edge_is_reloaded_killed_and_restarted_during_a_call(call, protocol):
    deployment, browsers = call()
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page), args=HTTP1 if protocol == "h1" else [])
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
        before = {page: browsers.state(page) for page in ("a", "b")}
        deployment.restart_edge(end)
        began = time.monotonic()
        away = {page: browsers.state(page) for page in ("a", "b")}
        assert all(away[page]["frames"] > before[page]["frames"] for page in ("a", "b")), "pictures moved while the edge was away"
        took = {}
        # Back: its WebSocket is open again, and LiveKit has resumed its session. The client waits two seconds more, and tells the page.
        for event, bar in (("SignalResumed", 3), ("Reconnected", 8)):
            while any(told(event, browsers.state(page)) == told(event, before[page]) for page in ("a", "b")):
                assert time.monotonic() - began < bar, (event, took)
                time.sleep(0.05)
            took[event] = round(time.monotonic() - began, 1)
        _, states = wait_for_media(browsers, ("a", "b"), 10)
        frozen = {page: round(states[page]["frozen"] - before[page]["frozen"], 2) for page in ("a", "b")}
        # Not asserted: the client restarts ICE when it resumes, and LiveKit sends no media until that is done: 0.1 to 2.8 s by
        # LiveKit's log, between the two of them, after the last message of the restart has passed the edge.
        print(f"edge ended by {end}: both are back after its start, in seconds: {took}; pictures stood for {frozen} s")
        assert "Disconnected" not in [name for page in ("a", "b") for _, name in states[page]["events"]]


# livekit-client 2.23 waits up to 10.5 s before it tries again to reach a service that has been away for some seconds, and as long once
# more when the new LiveKit does not know the session that it would resume. These pauses are what is left for the edge to cost.
IMPATIENT = [500] * 100


@pytest.mark.parametrize("outage, delays, args", [(0.2, None, []), (2, None, []), (2, None, HTTP1), (8, IMPATIENT, []), (30, IMPATIENT, [])])
def test_livekit_comes_back_and_so_does_the_picture(call, outage, delays, args):
    deployment, browsers = call()
    for page in ("a", "b"):
        browsers.join(page, deployment.sfu, deployment.token(page), delays=delays, args=args)
    wait_for_media(browsers, ("a", "b"), 60)
    times = []
    for _ in range(int(os.environ.get("CALL_RUNS", "1"))):
        logged = len(deployment.edge.log().splitlines())
        deployment.livekit.kill()
        time.sleep(outage)
        with deployment.namespace:
            deployment.livekit.start()
        began = time.monotonic()
        wait_for_reconnected(browsers, 45)
        wait_for_media(browsers, ("a", "b"), 45)
        times.append(round(time.monotonic() - began, 1))
        print(f"outage of {outage} s: pictures move after {times[-1]} s", flush=True)
        # No upgrade waits for a service that is away: its client has a back-off of its own.
        lines = [json.loads(line) for line in deployment.edge.log().splitlines()[logged:]]
        refused = [line for line in lines if line.get("status") == 502 and line["uri"].startswith("/rtc/v1?")]
        assert all(line["total_ms"] < 1000 for line in refused), refused
        time.sleep(3)
    assert max(times) <= 12, times


def told(event, state):
    """How often a page was told of an event."""
    return sum(name == event for _, name in state["events"])


def wait_for_reconnected(browsers, seconds):
    until = time.monotonic() + seconds
    while True:
        states = [browsers.state(page) for page in ("a", "b")]
        if all(state["connection"] == "connected" and state["published"] == 2 for state in states):
            return
        assert time.monotonic() < until, states
        time.sleep(0.2)
