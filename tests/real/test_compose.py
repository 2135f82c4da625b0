"""What `vestibule init` writes, brought up by compose with the commands that stand in it.

The images have the names that the file asks for. Where they cannot be pulled they are made from the appliance: Synapse and
PostgreSQL are real then, LiveKit and lk-jwt-service are the stand-ins of `stand-ins/`."""

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import BINARY, free_port, wait_for
from containers import APPLIANCE, IMAGE, docker
from test_init import COMPOSE

pytestmark = pytest.mark.skipif(not COMPOSE.exists(), reason="docker-compose 2.40 cannot be had here")

# What the images of others do at their start, as far as compose.yaml asks for it.
SYNAPSE = """#!/bin/sh
command=$1; shift
chown synapse /data; cd /data
python() { exec s6-setuidgid synapse /opt/synapse/bin/python -m synapse.app.homeserver "$@"; }
case $command in
generate) python -c /data/homeserver.yaml --generate-config --server-name "$SYNAPSE_SERVER_NAME" --report-stats "$SYNAPSE_REPORT_STATS" --data-directory /data ;;
run) python "$@" ;;
esac
"""
POSTGRES = """#!/bin/sh
export PATH=$PATH:/opt/postgresql/bin PGDATA=/var/lib/postgresql/data
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA" && chown postgres "$PGDATA" && chmod 700 "$PGDATA"
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password && chown postgres /tmp/password
    s6-setuidgid postgres initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 $POSTGRES_INITDB_ARGS
    echo "CREATE DATABASE $POSTGRES_USER;" | s6-setuidgid postgres postgres --single postgres
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
fi
mkdir -p /run/postgresql && chown postgres /run/postgresql
exec s6-setuidgid postgres postgres -c listen_addresses=*
"""


def made_like(name, entrypoint, folder, script=None):
    """An image of this name: pulled, or made of the appliance."""
    if script is None and docker("image", "inspect", name).returncode == 0 and "stand-in" not in docker("image", "inspect", name).stdout:
        return
    if script and (docker("image", "inspect", name).returncode == 0 or docker("pull", "-q", name).returncode == 0):
        return
    lines = [f"FROM {APPLIANCE}", "LABEL stand-in=true", "HEALTHCHECK NONE"]
    if script:
        (folder / "start").write_text(script)
        (folder / "start").chmod(0o755)
        lines.append("COPY start /start")
    else:
        program = entrypoint.removeprefix("/")
        lines.append(f"RUN cp /usr/local/bin/{program} {entrypoint}")
        # Compose asks for health with what Alpine has.
        lines.append("RUN printf '#!/bin/sh\\nexec /opt/appliance/answers 7880 /\\n' > /usr/local/bin/wget && chmod 755 /usr/local/bin/wget")
    if "postgres" in name:
        lines.append("ENV PATH=/opt/postgresql/bin:/usr/local/bin:/usr/bin:/bin")
    lines.append(f'ENTRYPOINT ["{entrypoint}"]')
    (folder / "Dockerfile").write_text("\n".join(lines))
    built = docker("build", "-t", name, str(folder))
    assert built.returncode == 0, built.stderr[-2000:]


class Stack:
    def __init__(self, folder):
        self.folder, self.port, self.project = folder, free_port(), f"vestibule-{os.getpid()}"
        subprocess.run([BINARY, "init", "example.org", "--dir", folder, "--email", "admin@example.org"], check=True, capture_output=True)
        toml = folder / "vestibule.toml"
        toml.write_text(toml.read_text() + '\n[tls]\ncertificates = "internal"\n')
        (folder / "compose.override.yaml").write_text(f"""services:
  vestibule: {{ image: "{IMAGE}", ports: !override ["127.0.0.1:{self.port}:443"] }}
  livekit: {{ ports: !reset [] }}
""")

    def compose(self, *arguments):
        environment = {**os.environ, "COMPOSE_PROJECT_NAME": self.project}
        return subprocess.run([COMPOSE, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True)

    def must(self, *arguments):
        done = self.compose(*arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def ask(self, host, path):
        context = ssl.create_default_context(cadata=self.must("exec", "-T", "vestibule", "/usr/local/bin/vestibule", "ca"))
        try:
            with urllib.request.urlopen(f"https://{host}:{self.port}{path}", timeout=20, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def edge(self):
        return json.loads(docker("inspect", self.must("ps", "-q", "vestibule").strip()).stdout)[0]


@pytest.fixture
def stack(appliance_image, tmp_path):
    for name, entrypoint, script in (
        ("ghcr.io/element-hq/synapse:v1.163.2", "/start", SYNAPSE),
        ("postgres:17-alpine", "/start", POSTGRES),
        ("livekit/livekit-server:v1.13.5", "/livekit-server", None),
        ("ghcr.io/element-hq/lk-jwt-service:0.6.0", "/lk-jwt-service", None),
    ):
        folder = tmp_path / entrypoint.removeprefix("/")
        folder.mkdir(exist_ok=True)
        made_like(name, entrypoint, folder, script)
    tmp_path.chmod(0o755)
    one = Stack(tmp_path / "deployment")
    yield one
    one.compose("down", "--volumes", "--timeout", "10")


def test_the_commands_of_the_file_bring_it_up_and_git_changes_it(stack):
    stack.must("run", "--rm", "--no-deps", "synapse", "generate")
    stack.must("up", "--detach")
    wait_for("the homeserver", lambda: stack.ask("matrix.example.org", "/_matrix/client/versions")[0] == 200, 120)
    assert json.loads(stack.ask("example.org", "/.well-known/matrix/server")[1]) == {"m.server": "matrix.example.org:443"}
    assert stack.ask("matrix.example.org", "/_synapse/admin/v1/server_version")[0] == 404
    assert stack.ask("jwt.matrixrtc.example.org", "/healthz")[0] == 200
    assert stack.ask("matrixrtc.example.org", "/rtc/v1/validate")[0] == 401

    # Git replaces the file, and the action says `up` again.
    before = stack.edge()
    new = stack.folder / "vestibule.toml.new"
    new.write_text((stack.folder / "vestibule.toml").read_text() + '\n[sites."new.example.org".routes]\n"/" = { respond = "new" }\n')
    new.rename(stack.folder / "vestibule.toml")
    stack.must("up", "--detach")
    wait_for("the new site", lambda: stack.ask("new.example.org", "/") == (200, b"new"), 30)
    after = stack.edge()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert docker("logs", after["Id"]).stderr.count('"ready"') == 1
