"""The drop-in under compose: what `vestibule init` writes, with images of the names that it asks for.

Where the images cannot be pulled they are made from the appliance: Synapse and PostgreSQL are real then, LiveKit and
lk-jwt-service are the stand-ins of `stand-ins/`."""

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request

from conftest import BINARY, FOR_TESTS, TOOLS, free_port, wait_for
from containers import APPLIANCE, IMAGE, docker

COMPOSE = TOOLS / "compose/usr/libexec/docker/cli-plugins/docker-compose"

SYNAPSE_IMAGE = "ghcr.io/element-hq/synapse:v1.163.2"
POSTGRES_IMAGE = "postgres:17-alpine"
LIVEKIT = "livekit/livekit-server:v1.13.9"
LK_JWT = "ghcr.io/element-hq/lk-jwt-service:0.10.0"

# What the images of others do at their start, as far as compose.yaml asks for it.
SYNAPSE = """#!/bin/sh
command=$1; shift
chown synapse /data; cd /data
# The image of Element has 991 for the group of its user, by which it reads what is for it alone.
getent group 991 >/dev/null || { groupadd --gid 991 registration && usermod --append --groups registration synapse; }
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
    """What `init` writes for example.org, in containers. The port that clients see is a free one, there are no limits that tests
    would meet, and the internal CA signs, for want of a public name."""

    def __init__(self, folder, project):
        self.folder, self.https, self.project = folder, free_port(), f"vestibule-{project}-{os.getpid()}"
        subprocess.run([BINARY, "init", "example.org", "--dir", folder, "--email", "admin@example.org"], check=True, capture_output=True)
        toml = folder / "vestibule.toml"
        listen = f'[listen]\nhttps = ["[::]:443", "[::]:{self.https}"]\npublic_port = {self.https}\n'
        toml.write_text(f'{toml.read_text()}\n{listen}[tls]\ncertificates = "internal"\n')
        lines = folder / "homeserver-lines.yaml"
        lines.write_text(lines.read_text().replace("https://jwt.matrixrtc.example.org", self.url("jwt.matrixrtc.example.org")))
        (folder / "for-tests.yaml").write_text(FOR_TESTS)
        (folder / "compose.override.yaml").write_text(f"""services:
  vestibule: {{ image: "{IMAGE}", ports: !override ["127.0.0.1:{self.https}:443"] }}
  livekit: {{ ports: !reset [] }}
  synapse:
    command: run -c /data/homeserver.yaml -c /etc/synapse/homeserver-lines.yaml -c /etc/synapse/for-tests.yaml
    volumes: [./for-tests.yaml:/etc/synapse/for-tests.yaml:ro]
""")

    def start(self):
        """By the commands that stand in compose.yaml."""
        self.must("run", "--rm", "--no-deps", "synapse", "generate")
        self.must("up", "--detach")
        wait_for("the edge", lambda: self.compose("exec", "-T", "vestibule", "/usr/local/bin/vestibule", "healthcheck").returncode == 0, 60)
        self.root = self.folder / "root.pem"
        self.root.write_text(self.must("exec", "-T", "vestibule", "/usr/local/bin/vestibule", "ca"))
        try:
            wait_for("the homeserver", lambda: self.ask("matrix.example.org", "/_matrix/client/versions")[0] == 200, 120)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('ps', '--all').stdout}\n{self.homeserver_log()[-6000:]}\n{self.log()[-3000:]}") from error

    def stop(self):
        (self.folder / "edge.err").write_text(self.log())
        self.compose("down", "--volumes", "--timeout", "2")

    def compose(self, *arguments):
        environment = {**os.environ, "COMPOSE_PROJECT_NAME": self.project}
        return subprocess.run([COMPOSE, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True)

    def must(self, *arguments):
        done = self.compose(*arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def url(self, host):
        return f"https://{host}:{self.https}"

    def ask(self, host, path):
        context = ssl.create_default_context(cafile=str(self.root))
        try:
            with urllib.request.urlopen(self.url(host) + path, timeout=20, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def edge(self):
        return json.loads(docker("inspect", self.must("ps", "-q", "vestibule").strip()).stdout)[0]

    def log(self):
        return docker("logs", self.edge()["Id"]).stderr

    def homeserver_log(self):
        """On standard output in Synapse's own image, in a file where `generate` was that of the package."""
        return self.must("logs", "synapse") + self.compose("exec", "-T", "synapse", "cat", "/data/homeserver.log").stdout


def made_images(folder):
    """Images of the names that compose.yaml asks for; the folder is scratch."""
    for name, entrypoint, script in (
        (SYNAPSE_IMAGE, "/start", SYNAPSE),
        (POSTGRES_IMAGE, "/start", POSTGRES),
        (LIVEKIT, "/livekit-server", None),
        (LK_JWT, "/lk-jwt-service", None),
    ):
        context = folder / entrypoint.removeprefix("/")
        context.mkdir(exist_ok=True)
        made_like(name, entrypoint, context, script)


def bring_up(folder, project):
    """The stack in a folder, with its images."""
    made_images(folder)
    folder.chmod(0o755)
    return Stack(folder / "deployment", project)
