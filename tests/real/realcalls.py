"""The real LiveKit and lk-jwt-service, in a network namespace of their own, where the edge has port 443.

Each server is taken from its environment variable (LIVEKIT_SERVER, LK_JWT_SERVICE), else from PATH, else out of its container
image at the version that `init` pins, where a registry can be reached. `REAL` says of each where it came from."""

import contextlib
import ctypes
import functools
import http.server
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import urllib.request

import pytest

from conftest import ROOT, TOOLS, Edge, Synapse, wait_for
from standins import KEY, SECRET, jwt

HERE = pathlib.Path(__file__).parent
PAGES = TOOLS / "npm" / "node_modules"
CLONE_NEWNET = 0x40000000
_names = itertools.count()

# The image of each server and its program in it; the version is the one that `init` writes.
IMAGES = {
    "livekit-server": ("LIVEKIT_SERVER", "livekit/livekit-server", "/livekit-server"),
    "lk-jwt-service": ("LK_JWT_SERVICE", "ghcr.io/element-hq/lk-jwt-service", "/lk-jwt-service"),
}


@functools.cache
def server(name):
    """The path of a real server and where it came from; None where it cannot be had."""
    variable, image, inside = IMAGES[name]
    if os.environ.get(variable):
        return os.environ[variable], f"${variable}"
    if shutil.which(name):
        return shutil.which(name), "PATH"
    return out_of_image(name, image, inside)


def out_of_image(name, image, inside):
    compose = (ROOT / "config" / "compose.yaml").read_text()
    pinned = next((line.split("image:")[1].strip() for line in compose.splitlines() if f"image: {image}" in line), None)
    if not pinned or not shutil.which("docker"):
        return None
    target = TOOLS / name
    try:
        made = subprocess.run(["docker", "create", pinned], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None
    if made.returncode:
        return None
    container = made.stdout.strip().splitlines()[-1]
    try:
        copied = subprocess.run(["docker", "cp", f"{container}:{inside}", str(target)], capture_output=True)
    finally:
        subprocess.run(["docker", "rm", container], capture_output=True)
    # Stand-ins have the same names and tags where no registry can be reached; they are scripts.
    is_real = copied.returncode == 0 and target.read_bytes()[:4] == b"\x7fELF"
    if not is_real:
        target.unlink(missing_ok=True)
    return (str(target), pinned) if is_real else None


def table():
    """Each part of the tests of calls, and where it came from."""
    rows = [("Synapse", "PyPI")]
    for name in IMAGES:
        found = server(name)
        rows.append((name, f"{found[1]}: {version(found[0])}" if found else "a stand-in; the calls of test_real_calls.py were skipped"))
    return [*rows, ("livekit-client", "npm" if (PAGES / "livekit-client").exists() else "not here")]


def version(program):
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said.splitlines()[0] if said else program


def needs(*names):
    """Skips a test where one of the servers cannot be had, or no namespace made."""
    missing = [name for name in names if server(name) is None]
    if missing:
        pytest.skip(f"no real {' and '.join(missing)}: set {', '.join(IMAGES[name][0] for name in missing)}, or let a registry be reached")
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and iproute2")
    if not shutil.which("certutil") or not os.path.exists("/usr/bin/chromium") or not (PAGES / "livekit-client").exists():
        pytest.skip("Chromium, certutil (libnss3-tools) or livekit-client (npm) is not here")


class Namespace:
    """A network namespace. Inside `with`, whatever this thread opens or starts is in it."""

    def __init__(self):
        self.name = f"vestibule-{os.getpid()}-{next(_names)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments):
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def run(self, *command, **keywords):
        return subprocess.run(["ip", "netns", "exec", self.name, *command], check=True, **keywords)

    def __enter__(self):
        self.before = os.open("/proc/self/ns/net", os.O_RDONLY)
        with open(f"/run/netns/{self.name}") as inside:
            self._enter(inside.fileno())
        return self

    def __exit__(self, *_):
        self._enter(self.before)
        os.close(self.before)

    @staticmethod
    def _enter(fd):
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.name], check=False)


class Process:
    """A server that is started, killed and started again."""

    def __init__(self, folder, name, command, ready, environment=None):
        self.folder, self.name, self.command, self.ready, self.environment = folder, name, command, ready, environment
        self.log = folder / f"{name}.out"
        self.start()

    def start(self):
        with open(self.log, "a") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, env={**os.environ, **(self.environment or {})})
        wait_for(self.name, lambda: self.alive() and self.ready(), 30)

    def alive(self):
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return True

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def answers(url):
    return lambda: urllib.request.urlopen(url, timeout=2).status == 200


LIVEKIT = """
port: 7880
bind_addresses: ["127.0.0.1"]
rtc:
  tcp_port: 7881
  port_range_start: 50000
  port_range_end: 50100
  use_external_ip: false
  node_ip: {node_ip}
  enable_loopback_candidate: {loopback}
room: {{ auto_create: {auto_create} }}
webhook: {{ api_key: {key}, urls: ["http://127.0.0.1:8080/sfu_webhook"] }}
turn: {turn}
"""

THREE_NAMES = """
[matrix]
server_name = "example.org"
{matrix}
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."jwt.matrixrtc.example.org"]
kind     = "lk-jwt"
upstream = "http://127.0.0.1:8080"
[sites."matrixrtc.example.org"]
kind     = "livekit"
upstream = "http://127.0.0.1:7880"
[sites."example.org"]
"""

ONE_HOST = """
[matrix]
server_name = "example.org"
{matrix}
[sites."example.org"]
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "http://127.0.0.1:{synapse}"
[sites."matrix.example.org".routes]
"/livekit/jwt" = {{ kind = "lk-jwt",  upstream = "http://127.0.0.1:8080", strip_prefix = true }}
"/livekit/sfu" = {{ kind = "livekit", upstream = "http://127.0.0.1:7880", strip_prefix = true }}
"""

PAGE = """
[sites."app.example.org"]
upstream = "http://127.0.0.1:8090"
"""

TURN = """
[sites."turn.example.org"]
kind     = "turn"
upstream = "tcp://127.0.0.1:5349"
"""

ADDRESSES = {"three": ("wss://matrixrtc.example.org", "https://jwt.matrixrtc.example.org"),
             "one": ("wss://matrix.example.org/livekit/sfu", "https://matrix.example.org/livekit/jwt")}


class Deployment:
    """Edge, LiveKit, and where they are asked for Synapse and lk-jwt-service, on a machine (a namespace) of their own. `synapse`: its settings, for a deployment with them. `matrix`: more lines of
    the edge's section."""

    def __init__(self, folder, layout="three", turn=None, sites="", node_ip="127.0.0.1", synapse=None, matrix="", listen=("127.0.0.1",), prepare=None):
        self.folder, self.namespace = folder, Namespace()
        self.sfu, self.service = ADDRESSES[layout]
        self.layout, self.extra, self.turn, self.node_ip = layout, sites, turn, node_ip
        self.listen_on, self.matrix = listen, matrix
        self.pages = folder / "pages"
        self.pages.mkdir()
        for name in ("call.html", "widget.html"):
            (self.pages / name).write_text((HERE / name).read_text())
        (self.pages / "call").symlink_to(PAGES / "@element-hq" / "element-call-embedded" / "dist")
        (self.pages / "matrix-widget-api.js").symlink_to(PAGES / "matrix-widget-api" / "dist" / "api.min.js")
        (self.pages / "livekit-client.umd.js").write_bytes((PAGES / "livekit-client" / "dist" / "livekit-client.umd.js").read_bytes())
        self.started, self.servers = [], []
        if prepare:
            prepare(self.namespace)
        with self.namespace:
            self.serve_pages()
            self.synapse = Synapse(self.make("synapse"), synapse, "client, federation, openid") if synapse is not None else None
            self.start_livekit()
            self.start_edge()
            if self.synapse:
                self.start_service()

    def make(self, name):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def serve_pages(self):
        handler = functools.partial(Quiet, directory=str(self.pages))
        pages = http.server.ThreadingHTTPServer(("127.0.0.1", 8090), handler)
        self.servers.append(pages)
        threading.Thread(target=pages.serve_forever, daemon=True).start()

    def start_livekit(self):
        config = self.folder / "livekit.yaml"
        turn = json.dumps(self.turn or {"enabled": False})
        loopback = str(self.node_ip.startswith("127.")).lower()
        config.write_text(LIVEKIT.format(key=KEY, turn=turn, node_ip=self.node_ip, loopback=loopback, auto_create="true"))
        self.livekit = Process(self.folder, "livekit", [server("livekit-server")[0], "--config", str(config), "--node-ip", self.node_ip],
                               answers("http://127.0.0.1:7880/"), {"LIVEKIT_KEYS": f"{KEY}: {SECRET}"})
        self.started.append(self.livekit)

    def start_edge(self):
        sites = (THREE_NAMES if self.layout == "three" else ONE_HOST).format(matrix=self.matrix, synapse=self.synapse.port if self.synapse else 1)
        self.edge = Edge(self.make("edge"), sites + PAGE + self.extra, ports=(80, 443), addresses=self.listen_on)

    def restart_edge(self, end):
        """Ends the edge by a signal, and starts it again."""
        self.edge.process.send_signal(getattr(signal, f"SIG{end}"))
        self.edge.process.wait(15)
        with self.namespace:
            self.start_edge()

    def start_service(self):
        hosts = self.folder / "hosts"
        names = ["example.org", "matrix.example.org", "matrixrtc.example.org", "jwt.matrixrtc.example.org"]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"127.0.0.1 {name}\n" for name in names))
        command = ["unshare", "-m", "sh", "-c", f'mount --bind "{hosts}" /etc/hosts && exec "{server("lk-jwt-service")[0]}"']
        self.jwt = Process(self.folder, "lk-jwt", command, answers("http://127.0.0.1:8080/healthz"), {
            "LIVEKIT_JWT_BIND": "127.0.0.1:8080", "LIVEKIT_URL": self.sfu, "LIVEKIT_KEY": KEY, "LIVEKIT_SECRET": SECRET,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "example.org", "SSL_CERT_FILE": str(self.edge.root),
        })
        self.started.append(self.jwt)

    def token(self, name, room="room"):
        grant = {"roomJoin": True, "room": room, "roomCreate": True, "canPublish": True, "canSubscribe": True}
        return jwt({"sub": name, "nbf": int(time.time()) - 5, "exp": int(time.time()) + 3600, "video": grant})

    def stop(self):
        for process in reversed(self.started):
            process.stop()
        if self.edge.process.poll() is None:
            self.edge.stop()
        if self.synapse:
            self.synapse.stop()
        for pages in self.servers:
            pages.shutdown()
        self.namespace.remove()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Browsers:
    """Chromium, driven by call.mjs, in a namespace; its trust is in a HOME of its own."""

    def __init__(self, folder, root, namespace, address="127.0.0.1"):
        home = folder / f"home-{next(_names)}"
        database = home / ".pki" / "nssdb"
        database.mkdir(parents=True)
        subprocess.run(["certutil", "-d", f"sql:{database}", "-N", "--empty-password"], check=True)
        subprocess.run(["certutil", "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "tests", "-i", str(root)], check=True)
        script = TOOLS / "npm" / "call.mjs"
        script.write_text((HERE / "call.mjs").read_text())
        self.rules = f"MAP *.example.org {address}, MAP example.org {address}"
        self.log = folder / f"browsers-{next(_names)}.out"
        with namespace, open(self.log, "w") as log:
            self.process = subprocess.Popen(["node", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                            text=True, env={**os.environ, "HOME": str(home)})
        self.ids = itertools.count()

    def ask(self, op, **rest):
        identity = next(self.ids)
        self.process.stdin.write(json.dumps({"id": identity, "op": op, **rest}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["id"] == identity and "error" not in answer, answer
        return answer["value"]

    def open(self, page, url, **rest):
        return self.ask("open", page=page, url=url, rules=self.rules, **rest)

    def state(self, page):
        return self.ask("evaluate", page=page, code="state()")

    def join(self, page, url, token, relay=False, args=(), delays=None):
        self.open(page, "https://app.example.org/call.html", args=list(args))
        options = {"rtcConfig": {"iceTransportPolicy": "relay"}} if relay else {}
        arguments = ", ".join(map(json.dumps, (url, token, options, delays)))
        return self.ask("evaluate", page=page, code=f"join({arguments})")

    def stop(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def wait_for_media(browsers, pages, seconds=30, sound=False):
    """Waits until each page has new frames of somebody else (and sound); how long it took, and the states."""
    began = time.monotonic()
    before = {page: browsers.state(page) for page in pages}
    while True:
        now = {page: browsers.state(page) for page in pages}
        moved = all(now[page]["frames"] > before[page]["frames"] + 10 for page in pages)
        heard = all(not sound or now[page]["audio"] > before[page]["audio"] for page in pages)
        if moved and heard:
            return time.monotonic() - began, now
        # After a new connection counters begin again.
        for page in pages:
            if now[page]["frames"] < before[page]["frames"]:
                before[page] = now[page]
        assert time.monotonic() - began < seconds, (now, browsers.log.read_text()[-3000:])
        time.sleep(0.3)
