"""A real Synapse, a stand-in for the call services, and the edge in front of them, as processes of this test run."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from containers import appliance_image, engine, image  # noqa: F401 (fixtures)
from strict import STRICT, pytest_runtest_makereport  # noqa: F401 (a hook)

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "target" / "debug" / "vestibule"
TOOLS = ROOT / "target" / "tools"

# Every name of example.org is this machine.
_getaddrinfo = socket.getaddrinfo


def _here(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and name.endswith("example.org"):
        host = "127.0.0.1"
    return _getaddrinfo(host, *args, **kwargs)


socket.getaddrinfo = _here


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, ready, seconds=90):
    until = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert time.monotonic() < until, f"{what} does not come up"
        time.sleep(0.05)


# Of any Synapse here: registration, no limits that tests would meet, and a name that shows whose well-known document it was.
FOR_TESTS = """
enable_registration: true
enable_registration_without_verification: true
bcrypt_rounds: 4
max_upload_size: 60M
trusted_key_servers: []
suppress_key_server_warning: true
public_baseurl: https://synapse-itself.example.org/
rc_login: { address: { per_second: 1000, burst_count: 1000 }, account: { per_second: 1000, burst_count: 1000 } }
rc_message: { per_second: 1000, burst_count: 1000 }
rc_registration: { per_second: 1000, burst_count: 1000 }
rc_joins_per_room: { per_second: 1000, burst_count: 1000 }
rc_delayed_event_mgmt: { per_second: 1000, burst_count: 1000 }
"""


class Synapse:
    """A homeserver of its own, with SQLite and without the limits that tests would meet."""

    def __init__(self, folder, settings="", serves="client, federation", forwarded="true"):
        self.port = free_port()
        self.folder = folder
        config = folder / "homeserver.yaml"
        run = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(config)]
        subprocess.run(
            [*run, "--server-name", "example.org", "--generate-config", "--report-stats=no", "--data-directory", str(folder)],
            check=True, capture_output=True, cwd=folder,
        )
        (folder / "more.yaml").write_text(f"""
listeners:
  - {{ port: {self.port}, type: http, bind_addresses: ["127.0.0.1"], x_forwarded: {forwarded}, resources: [{{ names: [{serves}] }}] }}
{FOR_TESTS}
{settings}
""")
        self.log = open(folder / "synapse.out", "w")
        self.command = [*run, "-c", str(folder / "more.yaml")]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, cwd=self.folder)
        health = f"http://127.0.0.1:{self.port}/health"
        wait_for("Synapse", lambda: self.alive() and urllib.request.urlopen(health, timeout=5).status == 200)

    def alive(self):
        assert self.process.poll() is None, (self.folder / "synapse.out").read_text()[-4000:]
        return True

    def homeserver_log(self):
        return (self.folder / "homeserver.log").read_text()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


class CallServices:
    """Stand-ins that answer as lk-jwt-service and LiveKit do; the WebSocket is a real library's."""

    def __init__(self, address="127.0.0.1"):
        from websockets.asyncio.server import serve

        self.requests = []
        started = threading.Event()

        self.open = 0

        async def talk(socket):
            self.open += 1
            try:
                async for message in socket:
                    if message == "close 4002":
                        await socket.close(4002, "they go")
                        return
                    await socket.send(message)
            finally:
                self.open -= 1

        def answer(connection, request):
            self.requests.append(request.path)
            if request.path.split("?")[0] == "/rtc/v1" and "Upgrade" in request.headers:
                return None if "access_token=" in request.path else connection.respond(401, "no permissions to access the room\n")
            if request.path == "/healthz":
                return connection.respond(200, "")
            return connection.respond(200, "OK")

        async def main():
            async with serve(talk, address, 0, process_request=answer, max_size=2**25, ping_interval=None) as server:
                self.port = server.sockets[0].getsockname()[1]
                self.loop = asyncio.get_running_loop()
                self.ended = asyncio.Event()
                started.set()
                await self.ended.wait()

        self.thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self.thread.start()
        assert started.wait(10)

    def stop(self):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)


class Edge:
    """The built program."""

    def __init__(self, folder, sites, listen="", ports=None, within=(), environment=None, pass_fds=(), addresses=("127.0.0.1",), binary=BINARY):
        self.http, self.https = ports or (free_port(), free_port())
        self.folder = folder
        config = folder / "vestibule.toml"
        config.write_text(f"""
[listen]
http = {json.dumps([f"{address}:{self.http}" for address in addresses])}
https = {json.dumps([f"{address}:{self.https}" for address in addresses])}
public_port = {self.https}
{listen}
[storage]
path = "{folder}/state"
[tls]
certificates = "internal"
[admin]
listen = "unix:{folder}/admin.sock"
{sites}
""")
        self.err = folder / "edge.err"
        self.process = subprocess.Popen([*within, binary, "run", "--config", config], stderr=open(self.err, "w"),
                                        env={**os.environ, **(environment or {})}, pass_fds=pass_fds)
        wait_for("the edge", lambda: self.process.poll() is None and '"started"' in self.err.read_text(), 20)
        self.root = folder / "root.pem"
        self.root.write_bytes(subprocess.run([BINARY, "ca", "--config", config], check=True, capture_output=True).stdout)

    def url(self, host):
        return f"https://{host}:{self.https}"

    def log(self):
        return self.err.read_text()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


THREE_NAMES = """
[matrix]
server_name = "example.org"
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."jwt.matrixrtc.example.org"]
kind     = "lk-jwt"
upstream = "http://127.0.0.1:{calls}"
[sites."matrixrtc.example.org"]
kind     = "livekit"
upstream = "http://127.0.0.1:{calls}"
[sites."example.org"]
redirect = "https://www.example.org"
[sites."app.example.org".routes]
"/" = {{ respond = {{ content_type = "text/html", body = "<!doctype html><title>app</title>" }} }}
"""

ONE_HOST = """
[matrix]
server_name = "example.org"
[sites."example.org"]
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."matrix.example.org".routes]
"/livekit/jwt" = {{ kind = "lk-jwt",  upstream = "http://127.0.0.1:{calls}", strip_prefix = true }}
"/livekit/sfu" = {{ kind = "livekit", upstream = "http://127.0.0.1:{calls}", strip_prefix = true }}
"""


@pytest.fixture(scope="session")
def synapse(tmp_path_factory):
    server = Synapse(tmp_path_factory.mktemp("synapse"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def calls():
    services = CallServices()
    yield services
    services.stop()


@pytest.fixture(scope="session")
def edge(request, tmp_path_factory, synapse, calls):
    server = Edge(tmp_path_factory.mktemp("edge"), THREE_NAMES.format(synapse=synapse.port, calls=calls.port))
    if any("test_calls" in item.nodeid for item in request.session.items):
        with quiet_websocket(server):
            yield server
    else:
        yield server
    assert server.stop() == 0, server.log()[-4000:]


@contextlib.contextmanager
def quiet_websocket(edge):
    """A WebSocket that is open as long as the edge is, and says nothing for two minutes at least."""
    from websockets.sync.client import connect

    context = ssl.create_default_context(cafile=str(edge.root))
    url = edge.url("matrixrtc.example.org").replace("https", "wss") + "/rtc/v1?access_token=x"
    with connect(url, ssl=context, ping_interval=None) as socket_:
        began = time.monotonic()
        yield
        time.sleep(max(0, 120 - (time.monotonic() - began)))
        socket_.send("still here")
        assert socket_.recv(timeout=10) == "still here"


@pytest.fixture(scope="session")
def stack(request, tmp_path_factory):
    """The drop-in under compose, one for all who ask."""
    import compose

    if not compose.COMPOSE.exists():
        pytest.skip("docker-compose 2.40 cannot be had here")
    request.getfixturevalue("appliance_image")
    one = compose.bring_up(tmp_path_factory.mktemp("stack"), "stack")
    try:
        one.start()
        yield one
    finally:
        one.stop()


# Tests that are known to be red, or were not seen green since the code beneath them changed, each with what is open.
# They run and are shown (`-rxX`); one that passes reliably leaves this list.
NOT_YET_GREEN = {}


# Tests with a Docker engine, by what their names contain.
CONTAINERS = ("test_appliance.py", "test_compose.py", "test_container.py", "test_migrate.py", "[containers", "-containers")


def pytest_xdist_make_scheduler(config, log):
    """Two groups side by side, whatever `--dist` says: tests with containers, whose images take minutes to build, and the others."""
    from xdist.scheduler import LoadScopeScheduling

    class TwoGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "containers" if any(word in nodeid for word in CONTAINERS) else "processes"

    return TwoGroups(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        test = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        for name, reason in NOT_YET_GREEN.items():
            if test.startswith(name):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def pytest_terminal_summary(terminalreporter):
    """What was real, for whoever reads the result."""
    import realcalls

    terminalreporter.section("what was real")
    for name, where in [*realcalls.table(), *components()]:
        terminalreporter.write_line(f"{name:16} {where}")
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"{skipped} skipped{', in strict mode' if STRICT else ''}")


def components():
    """The other real parts: where each is, or that its tests were skipped."""
    programs = ("docker", "chromium", "named", "promtool", "systemd-analyze", "strace", "faketime", "h2load", "nft")
    places = [(name, shutil.which(name)) for name in programs]
    places += [(name, path if (path := TOOLS / place).exists() else None)
               for name, place in (("caddy", "venv/bin/caddy"), ("pebble", "pebble"), ("docker-compose", "compose"), ("matrix-js-sdk", "npm/node_modules/matrix-js-sdk"))]
    return [(name, path or "not here; its tests were skipped") for name, path in places]


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_log(tmp_path_factory):
    """After everything: no edge of this run logged a secret."""
    yield
    for log in tmp_path_factory.getbasetemp().rglob("edge.err*"):
        for line in log.read_text().splitlines():
            assert not secrets_in(line), f"{log}: {line}"


def secrets_in(line):
    """The secrets in a line of a log: Synapse's access tokens, login tokens, passwords of these tests, and JWTs."""
    line = line.replace("=REDACTED", "")
    plain = re.findall(r"syt_\w|loginToken=[^&\" ]{4}|access_token=[^&\" ]{4}|a long password", line)
    # Every JSON object begins with a brace, and so its base64 with `e` and one of `w` to `y`.
    dotted = re.findall(r"(?=(e[wxyz][\w-]+\.e[wxyz][\w-]+\.[\w-]*))", line)
    return plain + [token for token in dotted if is_jwt(token)]


def is_jwt(token):
    """Whether this is a JWT (RFC 7519): header and claims are JSON objects in base64url, then comes a signature.

    That it begins with `eyJ` is not enough: the token of an ACME challenge is random base64url and sometimes does.
    """
    def is_object(segment):
        try:
            return isinstance(json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))), dict)
        except ValueError:
            return False

    header, claims, _signature = token.split(".")
    return is_object(header) and is_object(claims)


@pytest.fixture(scope="session")
def one_host(tmp_path_factory, synapse, calls):
    server = Edge(tmp_path_factory.mktemp("one-host"), ONE_HOST.format(synapse=synapse.port, calls=calls.port))
    yield server
    assert server.stop() == 0


def node(script, *arguments, root):
    """Runs a script of this folder with the packages of npm; what it prints is JSON."""
    target = TOOLS / "npm" / script
    target.write_text((pathlib.Path(__file__).parent / script).read_text())
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(root)}
    done = subprocess.run(["node", target, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(re.search(r"^JSON (.*)$", done.stdout, re.MULTILINE).group(1))
