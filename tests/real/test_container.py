"""The image, as Docker runs it: as nobody, on a read-only root, with no capability, stopped in time."""

import asyncio
import ipaddress
import json
import re
import ssl
import threading
import time
import urllib.request

import pytest

from conftest import ROOT, CallServices, free_port, wait_for
from containers import IMAGE, docker


class Container:
    """One that runs the image as strictly as it can be run."""

    def __init__(self, folder, sites):
        self.folder, self.port = folder, free_port()
        folder.chmod(0o755)
        self.configure(sites)
        self.name = f"vestibule-test-{self.port}"
        run = docker(
            "run", "--detach", "--name", self.name, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--publish", f"127.0.0.1:{self.port}:443", "--volume", f"{folder}:/etc/vestibule:ro", "--volume", "/var/lib/vestibule",
            "--health-interval", "1s", IMAGE)
        assert run.returncode == 0, run.stderr
        wait_for("the edge in its container", lambda: '"started"' in self.log(), 30)

    def configure(self, sites):
        (self.folder / "new").write_text(f'[tls]\ncertificates = "internal"\n{sites}')
        (self.folder / "new").rename(self.folder / "vestibule.toml")

    def log(self):
        return docker("logs", self.name).stderr

    def state(self):
        return json.loads(docker("inspect", self.name).stdout)[0]["State"]

    def context(self):
        return ssl.create_default_context(cadata=docker("exec", self.name, "/usr/local/bin/vestibule", "ca").stdout)

    def get(self):
        return urllib.request.urlopen(f"https://a.example.org:{self.port}/", context=self.context(), timeout=10).read()

    def remove(self):
        docker("rm", "--force", "--volumes", self.name)


@pytest.fixture
def contain(image, tmp_path):
    started = []

    def start(sites):
        started.append(Container(tmp_path, sites))
        return started[-1]

    yield start
    for one in started:
        one.remove()


def responding(text):
    return f'[sites."a.example.org".routes]\n"/" = {{ respond = "{text}" }}\n'


def test_the_image_is_small_and_holds_nothing_to_break_in_with(image):
    config = image["Config"]
    assert config["User"].split(":")[0] not in ("", "0", "root")
    assert config["StopSignal"] == "SIGTERM" and config["Healthcheck"]["Test"][-1] == "healthcheck"
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    assert (labels["licenses"], labels["version"]) == ("MIT OR Apache-2.0", version)
    assert image["Size"] < 60 << 20, image["Size"]
    for shell in ("sh", "/bin/sh", "/bin/bash"):
        assert docker("run", "--rm", "--entrypoint", shell, IMAGE, "-c", "true").returncode == 127


def test_it_serves_is_healthy_and_takes_a_new_file(contain):
    edge = contain(responding("one"))
    wait_for("health", lambda: edge.state()["Health"]["Status"] == "healthy", 30)
    assert edge.get() == b"one"
    edge.configure(responding("two"))
    wait_for("the change of the mounted file", lambda: edge.get() == b"two", 20)
    docker("kill", "--signal", "HUP", edge.name)
    wait_for("the reload", lambda: "the configuration is the same" in edge.log(), 20)
    assert docker("stop", edge.name).returncode == 0
    assert edge.state()["ExitCode"] == 0
    assert docker("start", edge.name).returncode == 0
    wait_for("another start", lambda: edge.log().count('"started"') == 2, 30)
    assert edge.get() == b"two", "its state is in the volume"


def test_stop_says_goodbye_to_every_call_in_time(contain):
    from websockets.asyncio.client import connect

    # The first address of the bridge's network is this machine's.
    subnet = json.loads(docker("network", "inspect", "bridge").stdout)[0]["IPAM"]["Config"][0]["Subnet"]
    gateway = str(ipaddress.ip_network(subnet)[1])
    calls = CallServices(gateway)
    try:
        edge = contain(f'[sites."a.example.org"]\nkind = "livekit"\nupstream = "http://{gateway}:{calls.port}"\n')

        async def hold():
            url, context = f"wss://a.example.org:{edge.port}/rtc/v1?access_token=x", edge.context()
            sockets = [await connect(url, ssl=context, ping_interval=None) for _ in range(50)]
            for socket in sockets:
                await socket.send("here")
                assert await socket.recv() == "here"
            stopping = threading.Thread(target=docker, args=("stop", edge.name))
            began = time.monotonic()
            stopping.start()
            await asyncio.gather(*(socket.wait_closed() for socket in sockets))
            closed = time.monotonic() - began
            await asyncio.to_thread(stopping.join)
            return {socket.close_code for socket in sockets}, closed, time.monotonic() - began

        codes, closed, stopped = asyncio.run(hold())
        assert codes == {1001} and edge.state()["ExitCode"] == 0
        assert closed < 5 and stopped < 10, (closed, stopped)
    finally:
        calls.stop()
