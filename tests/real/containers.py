"""A Docker engine and the images of this project, for all tests that need them: made once in a run."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
IMAGE = "vestibule:test"
APPLIANCE = "vestibule-appliance:test"


def docker(*arguments, **more):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, **more)


def forget_networks_of_dead_engines():
    """Removes the bridges and rules that an engine leaves behind which was killed. The next network with the same addresses, and
    that of `init`'s file has always the same, would answer to nobody."""
    names = lambda *arguments: [link["ifname"] for link in json.loads(subprocess.run(["ip", "-j", "link", "show", *arguments], capture_output=True, text=True).stdout or "[]")]
    for bridge in names("type", "bridge"):
        if re.fullmatch("br-[0-9a-f]{12}", bridge) and not names("master", bridge):
            subprocess.run(["ip", "link", "del", bridge], capture_output=True)
    left = set(names())
    for rule in subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True).stdout.splitlines():
        bridge = re.search("br-[0-9a-f]{12}", rule)
        if bridge and bridge[0] not in left:
            subprocess.run(["iptables", "-t", "nat", "-D", *rule.split()[1:]], capture_output=True)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """A Docker engine: the one that runs, or one of our own for as long as the tests take."""
    if not shutil.which("docker"):
        pytest.skip("docker.io cannot be had here")
    if docker("info").returncode == 0:
        yield
        return
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.skip("no Docker engine runs, and none can be started by this user")
    forget_networks_of_dead_engines()
    # Engines of runs that were killed leave this mount behind, and with it their folder.
    for left in tmp_path_factory.getbasetemp().parent.glob("*/engine*"):
        pid = left / "pid"
        if not (pid.exists() and pathlib.Path("/proc", pid.read_text().strip()).exists()):
            subprocess.run(["umount", left / "exec/netns/default"], capture_output=True)
    folder = tmp_path_factory.mktemp("engine")
    socket = f"unix://{folder}/docker.sock"
    # Behind the tests that run at the same time: the images take minutes of both cores.
    command = ["nice", "-n", "5", "dockerd", "--host", socket, "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    process = subprocess.Popen(command, stdout=open(folder / "log", "w"), stderr=subprocess.STDOUT)
    os.environ["DOCKER_HOST"] = socket
    try:
        until = time.monotonic() + 60
        while docker("info").returncode != 0:
            if process.poll() is not None or time.monotonic() > until:
                pytest.skip(f"a Docker engine does not start here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)
        # It leaves the mount of its network behind, which would keep the folder.
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True)
        del os.environ["DOCKER_HOST"]
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine):
    subprocess.run([HERE / "base-images.sh"], check=True)
    built = docker("build", "--network", "host", "-t", IMAGE, str(ROOT))
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return json.loads(docker("image", "inspect", IMAGE).stdout)[0]


@pytest.fixture(scope="session")
def appliance_image(image):
    subprocess.run([HERE / "base-images.sh", "appliance"], check=True)
    built = docker("build", "--network", "host", "-t", APPLIANCE, "--build-arg", f"VESTIBULE={IMAGE}", str(ROOT / "config/appliance"))
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return APPLIANCE
