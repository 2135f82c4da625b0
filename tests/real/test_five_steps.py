"""The page of five steps (config/calls.md) on a deployment that `init` wrote before November 2026 (june/): a call token is handed
out before, between and after the steps, there and back. The commands are taken from the page, and what has to change in the files
from what `init --add calls` prints. Synapse and the edge are real processes, LiveKit and lk-jwt-service stand-ins that run as compose.yaml
says at the time."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request

import httpx
import pytest
import yaml

from conftest import BINARY, FOR_TESTS, ROOT, free_port, wait_for
from standins import STABLE, LiveKit, LkJwt

STEPS, WAY_BACK = (ROOT / "config/calls.md").read_text().split("\n## ")[:2]
SFU, SERVICE = "wss://matrixrtc.example.org", "https://jwt.matrixrtc.example.org"
TRANSPORTS = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"


def commands(step, part=STEPS):
    """The commands of a step of the page."""
    text = re.split(r"^\d\. ", part, flags=re.MULTILINE)[step]
    return "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


def merged(there, more):
    """A document with more put into its places."""
    if isinstance(there, dict) and isinstance(more, dict):
        return {key: merged(there.get(key), more.get(key)) if key in more else there[key] for key in {**there, **more}}
    both = isinstance(there, list) and isinstance(more, list) and all(isinstance(one, str) for one in there)
    return there + more if both else more


class Deployment:
    def __init__(self, folder):
        self.folder, self.state = folder / "deployment", folder
        shutil.copytree(ROOT / "tests/real/june", self.folder)
        (self.folder / ".env").write_text("LIVEKIT_SECRET=a secret of thirty-two characters\nPOSTGRES_PASSWORD=p\n")
        self.ports = {name: free_port() for name in ("synapse:8008", "lk-jwt-service:8080", "livekit:7880", "http", "https")}
        run = [sys.executable, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
        more = ["--server-name", "example.org", "--generate-config", "--report-stats=no", "--data-directory", "."]
        subprocess.run([*run, *more], check=True, capture_output=True, cwd=folder)
        tests = "\n".join(line for line in FOR_TESTS.splitlines() if not line.startswith("public_baseurl"))
        (folder / "more.yaml").write_text(f"database: {{ name: sqlite3, args: {{ database: db.sqlite }} }}\n{tests}\n")
        self.running = {}
        for service in ("synapse", "lk-jwt-service", "livekit", "vestibule"):
            self.start(service)

    def file(self, name):
        return yaml.safe_load((self.folder / name).read_text())

    def change(self, name, more):
        (self.folder / name).write_text(yaml.safe_dump(merged(self.file(name), more), sort_keys=False))

    def mounted(self, service, path):
        """The file that a container has at this path."""
        for volume in self.file("compose.yaml")["services"][service]["volumes"]:
            source, target, *_ = volume.split(":")
            if target == path:
                return self.folder / source
        raise AssertionError(f"{service} has no {path}")

    def start(self, service):
        if stop := self.running.pop(service, None):
            stop()
        self.running[service] = getattr(self, service.replace("-", "_"))()

    def process(self, command, name, ready):
        out = open(self.state / f"{name}.out", "a")
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.state)

        def answers():
            assert process.poll() is None, (self.state / f"{name}.out").read_text()[-4000:]
            return ready()

        wait_for(name, answers)
        return lambda: (process.send_signal(signal.SIGTERM), process.wait(20), out.close())

    def synapse(self):
        lines = self.mounted("synapse", "/etc/synapse/homeserver-lines.yaml").read_text()
        port = self.ports["synapse:8008"]
        for path in self.file("homeserver-lines.yaml").get("app_service_config_files", []):
            registration = self.mounted("synapse", path).read_text()
            assert "lk-jwt-service:8080" in registration
            (self.state / "registration.yaml").write_text(self.here(registration))
            lines = lines.replace(path, str(self.state / "registration.yaml"))
        (self.state / "lines.yaml").write_text(lines.replace("port: 8008", f"port: {port}"))
        run = [sys.executable, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml", "-c", "lines.yaml", "-c", "more.yaml"]
        return self.process(run, "synapse", lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)

    def here(self, text):
        """With the addresses of the containers as they are here."""
        for name, port in self.ports.items():
            text = text.replace(name, f"127.0.0.1:{port}") if ":" in name else text
        return text

    def lk_jwt_service(self):
        compose = self.file("compose.yaml")["services"]["lk-jwt-service"]
        environment = compose["environment"]
        at = lambda name: f"http://127.0.0.1:{self.ports[name]}"
        service = LkJwt(environment["LIVEKIT_URL"], lambda: at("synapse:8008"), lambda: at("livekit:7880"), port=self.ports["lk-jwt-service:8080"])
        service.version = tuple(map(int, compose["image"].split(":")[1].split(".")[:2]))
        if path := environment.get("LIVEKIT_AS_REGISTRATION_FILE"):
            assert environment["LIVEKIT_HS_SERVER_NAME"] == environment["LIVEKIT_FULL_ACCESS_HOMESERVERS"] == "example.org"
            text = self.mounted("lk-jwt-service", path).read_text()
            service.tokens = tuple(re.search(f"^{name}: (.+)$", text, re.MULTILINE)[1] for name in ("as_token", "hs_token"))
        return service.stop

    def livekit(self):
        return LiveKit(port=self.ports["livekit:7880"]).stop

    def vestibule(self):
        config, log = self.state / "vestibule.toml", self.state / "edge.err"
        config.write_text(self.here((self.folder / "vestibule.toml").read_text()) + f"""
[listen]
http = ["127.0.0.1:{self.ports["http"]}"]
https = ["127.0.0.1:{self.ports["https"]}"]
[storage]
path = "{self.state}/state"
[tls]
certificates = "internal"
[admin]
listen = "unix:{self.state}/admin.sock"
""")
        process = subprocess.Popen([BINARY, "run", "--config", config], stderr=open(log, "w"))
        wait_for("the edge", lambda: process.poll() is None and '"ready"' in log.read_text(), 20)
        root = self.state / "root.pem"
        root.write_bytes(subprocess.run([BINARY, "ca", "--config", config], check=True, capture_output=True).stdout)
        self.context = ssl.create_default_context(cafile=str(root))
        return lambda: (process.send_signal(signal.SIGTERM), process.wait(20))

    def perform(self, script):
        """Does what a script of the page asks of Docker; everything else is for the shell. What it printed."""
        output = ""
        for command in re.split(r"\s*&&\s*|\n", script.strip()):
            words = shlex.split(command.replace('"$(id -u)"', "0").replace("$PWD", str(self.folder)))
            if words[:2] == ["docker", "run"]:
                arguments = words[words.index("vestibule:0.1.0") + 1:]
                output += self.vestibule_command([str(self.folder) if word == "/deployment" else word for word in arguments])
            elif words[:3] == ["docker", "compose", "exec"]:
                arguments = [word.replace("/etc/vestibule", str(self.folder)) for word in words[words.index("doctor"):]]
                output += self.doctor(arguments)
            elif words[:2] == ["docker", "compose"] and words[2] in ("up", "restart"):
                for service in words[3:]:
                    if not service.startswith("--"):
                        self.start(service)
            else:
                assert words[0] == "sudo", command
                if os.getuid() == 0 or words[1] != "chgrp":
                    subprocess.run(words[1:], check=True, cwd=self.folder)
        return output

    def vestibule_command(self, arguments, **more):
        done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=120, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def doctor(self, arguments):
        leads = ["--resolve", f"*:443:127.0.0.1:{self.ports['https']}", "--resolve", f"*:80:127.0.0.1:{self.ports['http']}"]
        more = ["--json", "--config", self.state / "vestibule.toml", "--user", "alice", *leads]
        # The media ports are those of this machine.
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            file, text = str(self.folder / "livekit.yaml"), (self.folder / "livekit.yaml").read_text()
            here = self.state / "livekit.yaml"
            here.write_text(text.replace("7881", str(tcp.getsockname()[1])).replace("7882", str(udp.getsockname()[1])))
            arguments = [str(here) if word == file else word for word in arguments]
            return self.vestibule_command([*arguments, *more], env={**os.environ, "VESTIBULE_PASSWORD": "a long password"})

    def client(self, host="matrix.example.org"):
        url = f"https://{host}:{self.ports['https']}"
        return httpx.Client(base_url=url, verify=self.context, timeout=60)

    def enter(self, jwt):
        with self.client("matrixrtc.example.org") as sfu:
            confirmed = sfu.get("/rtc/validate", params={"access_token": jwt})
            assert confirmed.status_code == 200, confirmed.text

    def transports(self, user):
        with self.client() as client:
            return client.get(TRANSPORTS, headers=user["headers"]).json()["rtc_transports"]

    def call(self, user, listed=None):
        """Enters a call by the way that the homeserver names (or has named: `listed`), and by the old one."""
        with self.client() as client, self.client("jwt.matrixrtc.example.org") as service:
            openid = client.post(f"/_matrix/client/v3/user/{user['id']}/openid/request_token", json={}, headers=user["headers"]).json()
            answer = service.post("/sfu/get", json={"room": user["room"], "openid_token": openid, "device_id": "D"})
            assert answer.status_code == 200, answer.text
            self.enter(answer.json()["jwt"])
            listed = listed or self.transports(user)
            assert listed[0]["livekit_service_url"] == SERVICE
            if url := listed[0].get("url"):
                body = {"url": url, "room_id": user["room"], "slot_id": "m.call#ROOM", "member_id": "member"}
                answer = client.post(f"{STABLE}get_token", json=body, headers=user["headers"])
                assert answer.status_code == 200, answer.text
                self.enter(answer.json()["jwt"])

    def stop(self):
        for stop in reversed(self.running.values()):
            stop()


@pytest.fixture
def deployment(tmp_path):
    one = Deployment(tmp_path)
    yield one
    one.stop()


def test_no_call_is_refused_before_between_and_after_the_five_steps_and_the_way_back(deployment):
    with deployment.client() as client:
        body = {"username": "alice", "password": "a long password", "auth": {"type": "m.login.dummy"}}
        made = client.post("/_matrix/client/v3/register", json=body).json()
        headers = {"Authorization": f"Bearer {made['access_token']}"}
        room = client.post("/_matrix/client/v3/createRoom", json={}, headers=headers).json()["room_id"]
        user = {"id": made["user_id"], "headers": headers, "room": room}
        deployment.call(user)
        assert client.post(f"{STABLE}get_token", json={}, headers=headers).status_code == 404

    # 1: what is missing is written, and what has to change is printed.
    before = {path.name: path.read_bytes() for path in deployment.folder.iterdir()}
    said = deployment.perform(commands(1))
    registration = deployment.folder / "rtc-registration.yaml"
    assert registration.stat().st_mode & 0o777 == 0o640 and (registration.stat().st_gid == 991 or os.getuid() != 0)
    assert all((deployment.folder / name).read_bytes() == text for name, text in before.items())
    tokens = re.findall("^[ah]s_token: (.+)$", registration.read_text(), re.MULTILINE)
    assert len(tokens) == 2 and not any(token in said for token in tokens)
    printed = {name: yaml.safe_load(text) for name, text in re.findall(r"^(\S+) was not changed\. .*?:\n\n(.*?)\n(?=\n|\Z)", said, re.MULTILINE | re.DOTALL)}
    services, lines = printed["compose.yaml"], printed["homeserver-lines.yaml"]
    deployment.call(user)

    # 2: Synapse knows of the service, and does not advertise it.
    deployment.change("compose.yaml", {"services": {"synapse": services["synapse"]}})
    deployment.change("homeserver-lines.yaml", {key: value for key, value in lines.items() if key != "matrix_rtc"})
    deployment.perform(commands(2))
    assert "url" not in deployment.transports(user)[0]
    deployment.call(user)

    # 3: the service answers both ways.
    deployment.change("compose.yaml", {"services": {"lk-jwt-service": services["lk-jwt-service"]}})
    deployment.perform(commands(3))
    deployment.call(user)

    # 4: the new way is advertised.
    deployment.change("homeserver-lines.yaml", {"matrix_rtc": lines["matrix_rtc"]})
    deployment.change("compose.yaml", {"services": {"livekit": services["livekit"]}})
    deployment.perform(commands(4))
    assert deployment.transports(user)[0]["url"] == SFU
    deployment.call(user)

    # 5: doctor agrees.
    findings = json.loads(deployment.perform(commands(5)))["findings"]
    assert not [finding for finding in findings if finding["verdict"] in ("warn", "fail")], findings
    ok = {finding["id"] for finding in findings if finding["verdict"] == "ok"}
    assert {"rtc.call", "rtc.call_by_homeserver", "rtc.tokens", "rtc.media.tcp", "files.compose", "files.homeserver", "files.livekit",
            "files.secret", "files.url", "files.webhook"} <= ok

    # The way back. 1: the new way is not advertised any more, and works for whoever has asked before.
    deployment.change("homeserver-lines.yaml", {"matrix_rtc": yaml.safe_load(before["homeserver-lines.yaml"])["matrix_rtc"]})
    listed = deployment.transports(user)
    deployment.perform(commands(1, WAY_BACK))
    assert "url" in listed[0] and "url" not in deployment.transports(user)[0]
    deployment.call(user)
    deployment.call(user, listed)

    # 2: the service is the old one.
    new = deployment.file("compose.yaml")["services"]
    (deployment.folder / "compose.yaml").write_bytes(before["compose.yaml"])
    deployment.change("compose.yaml", {"services": {name: new[name] for name in ("synapse", "livekit")}})
    deployment.perform(commands(2, WAY_BACK))
    deployment.call(user)

    # 3: Synapse does not know of the service.
    for name in ("compose.yaml", "homeserver-lines.yaml"):
        (deployment.folder / name).write_bytes(before[name])
    deployment.perform(commands(3, WAY_BACK))
    deployment.call(user)
    with deployment.client() as client:
        assert client.post(f"{STABLE}get_token", json={}, headers=headers).status_code == 404
    logs = "".join((deployment.state / name).read_text() for name in ("edge.err", "synapse.out"))
    assert not any(token in logs for token in tokens)
