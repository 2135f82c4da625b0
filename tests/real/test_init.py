"""What `vestibule init` writes, read by those whom it is for: our own `check`, compose, and Synapse."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from compose import COMPOSE
from conftest import BINARY, ROOT, free_port, wait_for

FILES = ["vestibule.toml", "compose.yaml", "livekit.yaml", "homeserver-lines.yaml", "rtc-registration.yaml", ".env"]


def init(folder, *more):
    return subprocess.run([BINARY, "init", "example.org", "--dir", folder, *more], capture_output=True, text=True)


@pytest.fixture
def deployment(tmp_path):
    folder = tmp_path / "deployment"
    done = init(folder, "--email", "admin@example.org")
    assert done.returncode == 0, done.stderr
    return folder


def test_it_writes_once_and_says_what_is_left_to_do(tmp_path, deployment):
    assert sorted(path.name for path in deployment.iterdir()) == sorted(FILES)
    assert (deployment / ".env").stat().st_mode & 0o777 == 0o600
    secrets = dict(re.findall(r"^(\w+)=(.+)$", (deployment / ".env").read_text(), re.MULTILINE))
    assert set(secrets) == {"LIVEKIT_SECRET", "POSTGRES_PASSWORD"} and all(len(one) >= 32 for one in secrets.values())
    registration = deployment / "rtc-registration.yaml"
    assert registration.stat().st_mode & 0o777 == 0o640
    tokens = re.findall("^[ah]s_token: ([0-9a-f]{64})$", registration.read_text(), re.MULTILINE)
    assert len(set(tokens)) == 2
    before = {name: (deployment / name).read_bytes() for name in FILES}
    (deployment / "livekit.yaml").unlink()
    again = init(deployment)
    assert again.returncode == 1 and "vestibule.toml, compose.yaml, homeserver-lines.yaml, rtc-registration.yaml, .env already exist in" in again.stderr
    assert not (deployment / "livekit.yaml").exists()
    assert all((deployment / name).read_bytes() == text for name, text in before.items() if name != "livekit.yaml")
    said = init(tmp_path / "other", "--one-host", "--homeserver", "m.example.org").stdout
    for words in ("example.org.", "m.example.org.", "80/tcp", "443/tcp", "7881/tcp", "7882/udp", "docker compose up"):
        assert words in said, said
    assert "matrixrtc" not in said and "LIVEKIT_SECRET" not in said
    assert subprocess.run([BINARY, "init", "example.org:8448"], capture_output=True, cwd=tmp_path).returncode == 2


def test_check_is_content(deployment):
    done = subprocess.run([BINARY, "check"], capture_output=True, text=True, cwd=deployment)
    assert done.returncode == 0 and "valid" in done.stdout, done.stderr
    assert not done.stderr


@pytest.mark.skipif(not COMPOSE.exists(), reason="docker-compose 2.40 cannot be had here")
@pytest.mark.parametrize("layout", [[], ["--one-host"], ["--homeserver", "example.org"]])
def test_compose_accepts_the_stack(tmp_path, layout):
    folder = tmp_path / "deployment"
    assert init(folder, *layout).returncode == 0
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [COMPOSE, "config", "--format", "json"]
    accepted = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert accepted.returncode == 0 and not accepted.stderr, accepted.stderr
    services = json.loads(accepted.stdout)["services"]
    secret = re.search("LIVEKIT_SECRET=(.+)", (folder / ".env").read_text())[1]
    assert services["lk-jwt-service"]["environment"]["LIVEKIT_SECRET"] == secret
    assert services["livekit"]["environment"]["LIVEKIT_KEYS"] == f"matrix-rtc: {secret}"
    assert all(":" in one["image"] and "latest" not in one["image"] for one in services.values())
    assert all(one["restart"] == "unless-stopped" for one in services.values())
    aliases = services["vestibule"]["networks"]["web"]["aliases"]
    sites = re.findall(r'^\[sites\."([^"]+)"\]', (folder / "vestibule.toml").read_text(), re.MULTILINE)
    assert sorted(aliases) == sorted(sites)
    (folder / ".env").unlink()
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert refused.returncode != 0 and re.search("LIVEKIT_SECRET|POSTGRES_PASSWORD", refused.stderr)


def test_synapse_starts_with_the_lines(tmp_path, deployment):
    """As the container does it: what `generate` made, and our lines over it. The database and the port are the test's."""
    port = free_port()
    run = [sys.executable, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"]
    more = ["--server-name", "example.org", "--generate-config", "--report-stats=no", "--data-directory", "."]
    subprocess.run([*run, *more], check=True, capture_output=True, cwd=tmp_path)
    lines = (deployment / "homeserver-lines.yaml").read_text()
    assert "port: 8008" in lines
    registration = deployment / "rtc-registration.yaml"
    lines = lines.replace("/etc/synapse/rtc-registration.yaml", str(registration))
    (tmp_path / "lines.yaml").write_text(lines.replace("port: 8008", f"port: {port}"))
    (tmp_path / "more.yaml").write_text("database: { name: sqlite3, args: { database: db.sqlite } }\ntrusted_key_servers: []\n")
    with open(tmp_path / "out", "w") as out:
        synapse = subprocess.Popen([*run, "-c", "lines.yaml", "-c", "more.yaml"], stdout=out, stderr=out, cwd=tmp_path)
    get = lambda path: urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
    try:
        def alive():
            assert synapse.poll() is None, (tmp_path / "out").read_text()[-4000:]
            return get("/health").status == 200
        wait_for("Synapse", alive)
        flags = json.load(get("/_matrix/client/versions"))["unstable_features"]
        assert flags["org.matrix.msc4140"] and flags["org.matrix.msc4143"]
        assert json.load(get("/.well-known/matrix/client"))["m.homeserver"]["base_url"] == "https://matrix.example.org/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports")
        assert json.load(refused.value)["errcode"] == "M_MISSING_TOKEN", "there is one"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_matrix/client/v1/rtc/livekit/get_token", b"{}", timeout=5)
        assert json.load(refused.value)["errcode"] == "M_MISSING_TOKEN", "it hands out tokens"
    finally:
        synapse.send_signal(signal.SIGTERM)
        synapse.wait(20)


def test_doctor_finds_nothing_wrong_in_the_files(deployment):
    files = ["--livekit", "livekit.yaml", "--homeserver", "homeserver-lines.yaml", "--compose", "compose.yaml"]
    nowhere = ["--resolve", "*:443:127.0.0.1:1", "--json"]
    done = subprocess.run([BINARY, "doctor", *files, *nowhere], capture_output=True, text=True, cwd=deployment, timeout=120)
    rows = [row for row in json.loads(done.stdout)["findings"] if row["layer"] == "files"]
    assert len(rows) == 6 and all(row["verdict"] == "ok" for row in rows), rows


# A deployment that `init` wrote in June, as far as calls are concerned.
JUNE_COMPOSE = """services:
  synapse:
    image: ghcr.io/element-hq/synapse:v1.163.2
    volumes: [synapse:/data]
  lk-jwt-service:
    image: ghcr.io/element-hq/lk-jwt-service:0.6.0
    environment:
      LIVEKIT_URL: wss://matrixrtc.example.org
      LIVEKIT_KEY: matrix-rtc
      LIVEKIT_SECRET: ${LIVEKIT_SECRET:?}
      LIVEKIT_FULL_ACCESS_HOMESERVERS: example.org
  livekit:
    image: livekit/livekit-server:v1.13.5
"""


def test_calls_are_added_to_a_deployment_that_is_there(deployment):
    (deployment / "compose.yaml").write_text(JUNE_COMPOSE)
    lines = deployment / "homeserver-lines.yaml"
    kept = [line for line in lines.read_text().splitlines() if not re.search("msc45|app_service|^      url:", line)]
    lines.write_text("\n".join(kept) + "\n")
    (deployment / "rtc-registration.yaml").unlink()
    before = {path.name: path.read_bytes() for path in deployment.iterdir()}
    done = init(deployment, "--add", "calls")
    assert done.returncode == 0, done.stderr
    written = set(path.name for path in deployment.iterdir()) - set(before)
    assert written == {"rtc-registration.yaml"} and all((deployment / name).read_bytes() == text for name, text in before.items())
    registration = deployment / "rtc-registration.yaml"
    assert registration.stat().st_mode & 0o777 == 0o640
    for words in ("lk-jwt-service:0.10.0", "livekit-server:v1.13.9", "LIVEKIT_AS_REGISTRATION_FILE: /etc/rtc-registration.yaml",
                  "LIVEKIT_HS_SERVER_NAME: example.org", "./rtc-registration.yaml:/etc/synapse/rtc-registration.yaml:ro",
                  "msc4502_enabled: true", "msc4512_enabled: true", "url: wss://matrixrtc.example.org"):
        assert words in done.stdout, done.stdout
    assert "image: ghcr.io/element-hq/synapse" not in done.stdout, "it has that one"
    tokens = re.findall("^[ah]s_token: (.+)$", registration.read_text(), re.MULTILINE)
    assert len(tokens) == 2 and not any(token in done.stdout + done.stderr for token in tokens)
    # Again: nothing is missing, and the tokens are those of before.
    again = init(deployment, "--add", "calls")
    assert again.returncode == 0 and "No file was missing" in again.stdout
    assert re.findall("^[ah]s_token: (.+)$", registration.read_text(), re.MULTILINE) == tokens
    other = subprocess.run([BINARY, "init", "other.org", "--add", "calls", "--dir", deployment], capture_output=True, text=True)
    assert other.returncode == 1 and "example.org" in other.stderr


@pytest.mark.skipif(not COMPOSE.exists(), reason="docker-compose 2.40 cannot be had here")
def test_compose_accepts_the_committed_example():
    environment = {"PATH": os.environ["PATH"], "LIVEKIT_SECRET": "s" * 64, "POSTGRES_PASSWORD": "p" * 64}
    command = [COMPOSE, "-f", ROOT / "config/compose.yaml", "config", "--quiet"]
    accepted = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert accepted.returncode == 0, accepted.stderr
