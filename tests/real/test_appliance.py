"""The appliance: built and started from nothing, used, stopped, started again, and hurt.

Synapse, PostgreSQL, s6 and the edge are real. LiveKit and lk-jwt-service are where their images can be pulled; where not, the
stand-ins of `stand-ins/` have their names, which check real tokens with the real Synapse and carry no media."""

import json
import os
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest

import acme
import pebble
from compose import POSTGRES
from conftest import free_port, wait_for
from containers import APPLIANCE, docker

HOSTS = ("example.org", "matrix.example.org", "jwt.matrixrtc.example.org", "matrixrtc.example.org")
SERVICES = ("postgres", "synapse", "livekit", "lk-jwt", "vestibule")


class Appliance:
    """One on a volume of its own, with the internal CA, for want of a public name."""

    def __init__(self, image, volume, *more, roots=None):
        """`roots` are those of the CA that is asked for certificates, instead of the internal one."""
        self.port, self.name, self.roots = free_port(), f"appliance-test-{free_port()}", roots
        self.began = time.monotonic()
        run = docker(
            "run", "--detach", "--name", self.name, "--volume", f"{volume}:/data", "--publish", f"127.0.0.1:{self.port}:443",
            "--env", "SERVER_NAME=example.org", "--env", "ACME_EMAIL=admin@example.org", "--env", f"CERTIFICATES={'acme' if roots else 'internal'}",
            "--health-interval", "2s", *more, image)
        assert run.returncode == 0, run.stderr
        self.wait()
        self.seconds = time.monotonic() - self.began

    def wait(self):
        wait_for("the appliance", lambda: self.alive() and self.exec("/opt/appliance/healthy").returncode == 0, 180)
        self.context = ssl.create_default_context(cadata=self.roots or self.exec("vestibule", "ca").stdout)

    def alive(self):
        assert json.loads(docker("inspect", self.name).stdout)[0]["State"]["Running"], self.log()[-4000:]
        return True

    def exec(self, *command, **more):
        return docker("exec", self.name, *command, **more)

    def log(self):
        return docker("logs", self.name, stderr=None).stdout

    def ask(self, host, path, body=None, token=None, kind="application/json", method=None):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"https://{host}:{self.port}{path}", data, {"Content-Type": kind}, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def matrix(self, path, body=None, token=None, **more):
        status, answer = self.ask("matrix.example.org", f"/_matrix/client/v3{path}", body, token, **more)
        assert status == 200, (path, status, answer)
        return json.loads(answer)


@pytest.fixture(scope="module")
def appliance(appliance_image):
    volume = f"appliance-test-{os.getpid()}"
    one = Appliance(appliance_image, volume)
    yield one
    docker("rm", "--force", one.name)
    docker("volume", "rm", "--force", volume)


@pytest.fixture(scope="module")
def alice(appliance):
    return first_user(appliance)


def first_user(appliance):
    """Alice, and what she has left on the server: her token, a room, a message, a picture."""
    made = appliance.exec("admin", "alice")
    assert made.returncode == 0, made.stdout + made.stderr
    password = re.search(r"^password: (\w+)$", made.stdout, re.MULTILINE).group(1)
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": password}
    session = appliance.matrix("/login", login)
    token = session["access_token"]
    room = appliance.matrix("/createRoom", {"name": "first"}, token)["room_id"]
    event = appliance.matrix(f"/rooms/{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "still here"}, token, method="PUT")
    status, answer = appliance.ask("matrix.example.org", "/_matrix/media/v3/upload", b"\x89PNG" * 5000, token, "image/png")
    assert status == 200, answer
    media = json.loads(answer)["content_uri"].removeprefix("mxc://")
    return {"token": token, "room": room, "event": event["event_id"], "media": media, "password": password, "device": session["device_id"]}


def intact(appliance, alice):
    event = appliance.matrix(f"/rooms/{alice['room']}/event/{alice['event']}", token=alice["token"])
    status, media = appliance.ask("matrix.example.org", f"/_matrix/client/v1/media/download/{alice['media']}", token=alice["token"])
    return event["content"]["body"] == "still here" and status == 200 and media == b"\x89PNG" * 5000


def key(appliance):
    return json.loads(appliance.ask("matrix.example.org", "/_matrix/key/v2/server")[1])["verify_keys"]


def test_two_variables_make_a_homeserver_with_calls(appliance, alice):
    assert intact(appliance, alice)
    client = json.loads(appliance.ask("example.org", "/.well-known/matrix/client")[1])
    focus = client["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"]
    assert (client["m.homeserver"]["base_url"], focus) == ("https://matrix.example.org", "https://jwt.matrixrtc.example.org")
    assert json.loads(appliance.ask("example.org", "/.well-known/matrix/server")[1]) == {"m.server": "matrix.example.org:443"}
    status, transports = appliance.ask(
        "matrix.example.org", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", token=alice["token"])
    assert status == 200 and json.loads(transports)["rtc_transports"][0]["livekit_service_url"] == focus
    assert appliance.ask("matrix.example.org", "/_synapse/admin/v1/server_version")[0] == 404


def entered(appliance, alice):
    """Enters a call as a client does: what it asked with, and the address that it got in at."""
    from websockets.sync.client import connect

    openid = appliance.matrix("/user/@alice:example.org/openid/request_token", {}, alice["token"])
    asked = {"room": alice["room"], "openid_token": openid, "device_id": alice["device"]}
    status, answer = appliance.ask("jwt.matrixrtc.example.org", "/sfu/get", asked)
    assert status == 200, (answer, appliance.log()[-2000:])
    call = json.loads(answer)
    assert call["url"] == "wss://matrixrtc.example.org"
    url = f"wss://matrixrtc.example.org:{appliance.port}/rtc/v1?access_token={call['jwt']}"
    with connect(url, ssl=appliance.context) as socket:
        assert socket.recv(timeout=20)
    return asked, url


def test_a_call_is_entered_with_a_token(appliance, alice):
    from websockets.sync.client import connect

    entered_by_the_homeserver(appliance, alice)
    asked, url = entered(appliance, alice)
    with pytest.raises(Exception, match="401"):
        connect(url[:-4] + "AAAA", ssl=appliance.context)
    wrong = {**asked, "openid_token": {**asked["openid_token"], "access_token": "wrong"}}
    assert appliance.ask("jwt.matrixrtc.example.org", "/sfu/get", wrong)[0] == 401


def test_each_service_is_nobody_but_itself_and_says_who_it_is(appliance):
    processes = appliance.exec("sh", "-c", "for p in /proc/[0-9]*; do echo $(stat -c %U $p) $(tr '\\0' ' ' < $p/cmdline); done").stdout
    for user, command in (("postgres", "postgres -D"), ("synapse", "synapse.app.homeserver"), ("vestibule", "vestibule run"),
                          ("livekit", "livekit-server"), ("lk-jwt", "lk-jwt-service")):
        assert re.search(rf"^{user} .*{command}", processes, re.MULTILINE), (user, processes)
    prefixes = {line.split("|")[0].strip() for line in appliance.log().splitlines() if " | " in line}
    assert prefixes >= {"postgres", "livekit", "lk-jwt", "vestibule"}, prefixes
    contents = appliance.exec("cat", "/usr/share/doc/appliance/contents.txt").stdout
    assert "AGPL-3.0" in contents and "postgresql-15" in contents and "lk-jwt-service" in contents
    secret = appliance.exec("sed", "-n", "s/^LIVEKIT_SECRET=//p", "/data/config/.env").stdout.strip()
    assert len(secret) == 64 and secret not in appliance.log()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_killed_comes_back(appliance, alice, service):
    before = appliance.exec("s6-svstat", "-o", "pid", f"/run/service/{service}").stdout
    killed = appliance.exec("s6-svc", "-k", f"/run/service/{service}")
    assert killed.returncode == 0, killed.stderr

    def back():
        after = appliance.exec("s6-svstat", "-o", "pid", f"/run/service/{service}").stdout
        return after not in (before, "-1\n") and appliance.exec("/opt/appliance/healthy").returncode == 0

    wait_for(f"{service} after kill -9", back, 90)
    def whole():
        try:
            return intact(appliance, alice)
        except AssertionError:
            return False  # a request that met the gap

    wait_for("the homeserver", whole, 60)


def test_the_edge_restarts_alone(appliance, alice):
    """What a change of a key needs that a reload cannot apply: everything behind the edge stays up."""
    def processes():
        return {name: appliance.exec("s6-svstat", "-o", "pid", f"/run/service/{name}").stdout for name in SERVICES}

    before = processes()
    began = time.monotonic()
    # TERM, the end, the start, and that it answers.
    restarted = appliance.exec("s6-svc", "-wr", "-T", "10000", "-r", "/run/service/vestibule")
    assert restarted.returncode == 0, restarted.stderr
    assert time.monotonic() - began < 6
    after = processes()
    assert after.pop("vestibule") != before.pop("vestibule") and after == before
    assert intact(appliance, alice)


def test_a_stop_is_in_order_and_keeps_everything(appliance, alice):
    keys, config = key(appliance), appliance.exec("cat", "/data/config/.env").stdout
    began = time.monotonic()
    assert docker("stop", appliance.name).returncode == 0
    seconds = time.monotonic() - began
    assert json.loads(docker("inspect", appliance.name).stdout)[0]["State"]["ExitCode"] == 0, appliance.log()[-3000:]
    assert seconds < 10, seconds
    assert "database system is shut down" in appliance.log()
    # Another container of the image on the same volume: what an upgrade does.
    volume = json.loads(docker("inspect", appliance.name).stdout)[0]["Mounts"][0]["Name"]
    docker("rm", appliance.name)
    again = Appliance(APPLIANCE, volume)
    appliance.__dict__.update(again.__dict__)
    assert intact(appliance, alice) and key(appliance) == keys and appliance.exec("cat", "/data/config/.env").stdout == config
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": alice["password"]}
    assert appliance.matrix("/login", login)["user_id"] == "@alice:example.org"


# Makes of a volume one that the appliance of June wrote, which had none of the tokens by which Synapse hands out those for calls.
JUNE = r"""set -eu; cd /data/config
sed -i '/^LIVEKIT_[AH]S_TOKEN=/d' .env
sed -i '/^LIVEKIT_[AH]S_/d' lk-jwt.env
sed -i '/msc45[01]2_enabled/d; /^app_service_config_files/d; /^      url: /d' homeserver-lines.yaml
rm rtc-registration.yaml
! grep -r -e S_TOKEN -e registration ."""


def test_a_volume_of_june_is_brought_to_calls_by_the_homeserver(appliance, alice):
    volume = json.loads(docker("inspect", appliance.name).stdout)[0]["Mounts"][0]["Name"]
    secrets = appliance.exec("cat", "/data/config/.env").stdout
    keys, root = key(appliance), appliance.exec("vestibule", "ca").stdout
    docker("stop", appliance.name)
    docker("rm", appliance.name)
    made = docker("run", "--rm", "--volume", f"{volume}:/data", "--entrypoint", "sh", APPLIANCE, "-c", JUNE)
    assert made.returncode == 0, made.stdout + made.stderr
    appliance.__dict__.update(Appliance(APPLIANCE, volume).__dict__)

    # The old secrets stay, and two new tokens are made.
    now = appliance.exec("cat", "/data/config/.env").stdout
    old, tokens = re.split("^(?=LIVEKIT_AS_TOKEN=)", now, flags=re.MULTILINE)
    assert secrets.startswith(old) and tokens not in secrets
    tokens = re.findall("^LIVEKIT_[AH]S_TOKEN=([0-9a-f]{64})$", tokens, re.MULTILINE)
    assert len(set(tokens)) == 2 and not any(token in appliance.log() for token in tokens)
    assert appliance.exec("stat", "-c", "%a %U %G", "/data/config/rtc-registration.yaml").stdout == "640 root synapse\n"
    # Rooms, keys and the CA are those of before, and a call is entered by each way.
    assert intact(appliance, alice) and key(appliance) == keys and appliance.exec("vestibule", "ca").stdout == root
    entered(appliance, alice)
    entered_by_the_homeserver(appliance, alice)


def entered_by_the_homeserver(appliance, alice):
    """Enters a call with a token of the homeserver, at the SFU that it names."""
    from websockets.sync.client import connect

    unstable = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"
    listed = json.loads(appliance.ask("matrix.example.org", unstable, token=alice["token"])[1])["rtc_transports"]
    sfu = next(one["url"] for one in listed if "url" in one)
    body = {"url": sfu, "room_id": alice["room"], "slot_id": "m.call#ROOM", "member_id": "member"}
    path = "/_matrix/client/v1/rtc/livekit/get_token"
    status, answer = appliance.ask("matrix.example.org", path, body, alice["token"])
    assert status == 200, answer
    url = f"{sfu}:{appliance.port}/rtc/v1?access_token={json.loads(answer)['jwt']}"
    with connect(url, ssl=appliance.context) as socket:
        assert socket.recv(timeout=20)
    assert appliance.ask("matrix.example.org", path, body)[0] == 401


def refusal(image, *arguments):
    run = docker("run", "--rm", *arguments, image)
    return run.returncode, run.stderr


def test_what_is_missing_is_said_in_a_sentence(appliance, appliance_image):
    volume = json.loads(docker("inspect", appliance.name).stdout)[0]["Mounts"][0]["Name"]
    both = ("--env", "SERVER_NAME=example.org", "--env", "ACME_EMAIL=a@example.org")
    for arguments, said in (
        ((), "SERVER_NAME is not set"),
        (both[:2], "ACME_EMAIL is not set"),
        (both, "no volume at /data"),
        ((*both, "--volume", "/data", "--env", "ACME_CA_FILE=/missing.pem"), "no certificate in PEM"),
        ((*both, "--volume", "/data", "--env", "ACME_DIRECTORY=zerossl"), "needs ACME_EAB_KID and ACME_EAB_HMAC_KEY"),
        ((*both, "--volume", "/data", "--env", "ACME_EAB_KID=kid"), "belong together"),
        (("--env", "SERVER_NAME=example.net", *both[2:], "--volume", f"{volume}:/data"), "the volume is that of example.org"),
    ):
        code, error = refusal(appliance_image, *arguments)
        assert code == 78 and said in error, (code, error)


def test_a_backup_is_restored_into_a_new_volume(appliance, alice, appliance_image, tmp_path):
    backup = tmp_path / "matrix.tar"
    with open(backup, "wb") as file:
        done = subprocess.run(["docker", "exec", appliance.name, "backup"], stdout=file, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    volume = f"appliance-test-restored-{os.getpid()}"
    into = lambda file: docker("run", "--rm", "--interactive", "--volume", f"{volume}:/data", appliance_image, "restore", stdin=file)
    again = None
    try:
        with open("/dev/null") as nothing:
            refused = into(nothing)
        assert refused.returncode == 78 and "not a backup" in refused.stderr, refused.stderr
        with open(backup) as file:
            restored = into(file)
        assert restored.returncode == 0 and "the data of example.org again" in restored.stderr, restored.stderr
        with open(backup) as file:
            assert "already has the data of example.org" in into(file).stderr
        again = Appliance(appliance_image, volume)
        assert intact(again, alice) and key(again) == key(appliance)
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": alice["password"]}
        assert again.matrix("/login", login)["access_token"]
        # The edge has its certificates and its CA as they were.
        assert again.exec("vestibule", "ca").stdout == appliance.exec("vestibule", "ca").stdout
        read = "cat /data/vestibule/internal-ca.json"
        assert again.exec("sh", "-c", read).stdout == appliance.exec("sh", "-c", read).stdout
    finally:
        if again:
            docker("rm", "--force", again.name)
        docker("volume", "rm", "--force", volume)


def test_the_signing_key_is_never_made_again(appliance, appliance_image):
    volume = json.loads(docker("inspect", appliance.name).stdout)[0]["Mounts"][0]["Name"]
    docker("stop", appliance.name)
    path = "/data/synapse/example.org.signing.key"
    moved = docker("run", "--rm", "--volume", f"{volume}:/data", "--entrypoint", "mv", appliance_image, path, f"{path}.away")
    assert moved.returncode == 0, moved.stderr
    code, error = refusal(appliance_image, "--env", "SERVER_NAME=example.org", "--env", "ACME_EMAIL=a@example.org", "--volume", f"{volume}:/data")
    assert code == 78 and "signing.key is gone" in error, (code, error)


def test_another_postgresql_is_one_variable(appliance_image, tmp_path):
    name = f"appliance-test-postgres-{os.getpid()}"
    (tmp_path / "start").write_text(POSTGRES)
    (tmp_path / "start").chmod(0o755)
    assert docker("network", "create", name).returncode == 0
    one = None
    try:
        run = docker(
            "run", "--detach", "--name", name, "--network", name, "--volume", f"{tmp_path}/start:/start:ro", "--entrypoint", "/start",
            "--env", "POSTGRES_USER=synapse", "--env", "POSTGRES_PASSWORD=secret", "--env", "POSTGRES_INITDB_ARGS=--encoding=UTF8 --locale=C",
            appliance_image)
        assert run.returncode == 0, run.stderr
        one = Appliance(appliance_image, f"{name}-data", "--network", name, "--env", f"DATABASE_URL=postgresql://synapse:secret@{name}/synapse")
        assert "user: @bob:example.org" in one.exec("admin", "bob").stdout
        assert one.exec("test", "-e", "/data/postgres").returncode == 1
    finally:
        for container in (name, one and one.name):
            docker("rm", "--force", "--volumes", container or name)
        docker("volume", "rm", "--force", f"{name}-data")
        docker("network", "rm", name)


@acme.needs_pebble
def test_certificates_of_a_private_ca_and_calls_with_them(appliance_image, tmp_path):
    folder, name, management = tmp_path / "pebble", f"appliance-test-ca-{os.getpid()}", free_port()
    pebble.prepare(folder)
    assert docker("network", "create", name).returncode == 0
    one = None
    try:
        run = docker("run", "--detach", "--name", name, "--network", name, "--network-alias", "pebble",
                     "--publish", f"127.0.0.1:{management}:15000", "--volume", f"{folder}:/pebble:ro", pebble.IMAGE)
        assert run.returncode == 0, run.stderr
        roots = (folder / "ca.pem").read_text() + pebble.root(folder, management).decode()
        (tmp_path / "roots.pem").write_text(roots)
        names = [f"--network-alias={host}" for host in HOSTS]
        one = Appliance(
            appliance_image, f"{name}-data", "--network", name, *names, "--volume", f"{tmp_path}/roots.pem:/roots.pem:ro",
            "--env", f"ACME_DIRECTORY={pebble.DIRECTORY}", "--env", "ACME_CA_FILE=/roots.pem", roots=roots)
        wait_for("the certificates", lambda: all(one.ask(host, "/")[0] for host in HOSTS), 60)
        assert docker("logs", name).stdout.count("Issued certificate serial") == len(HOSTS)
        entered(one, first_user(one))
        wait_for("the table of doctor", lambda: re.search(r"doctor .* (\d+) ok, .* (\d+) fail", one.log()), 60)
        assert " 0 fail" in one.log(), one.log()[-6000:]
    finally:
        for container in (one and one.name, name):
            docker("rm", "--force", "--volumes", container or name)
        docker("volume", "rm", "--force", f"{name}-data")
        docker("network", "rm", name)
