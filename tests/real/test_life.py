"""The life of the process as systemd, Prometheus and an operator see it."""

import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import urllib.request

import pytest

from conftest import BINARY, ROOT, Edge, free_port, wait_for

SITES = '[sites."a.example.org".routes]\n"/" = { respond = "here" }\n'


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} cannot be had here")


def door(edge, path, accept="*/*"):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(edge.folder / "admin.sock"))
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        page = b"".join(iter(lambda: stream.recv(65536), b""))
    head, _, body = page.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


@pytest.fixture
def small(tmp_path):
    server = Edge(tmp_path, SITES)
    yield server
    assert server.stop() == 0


# Prometheus and Grafana


@needs("promtool")
def test_prometheus_accepts_the_metrics_and_finds_nothing_to_mend(small):
    context = ssl.create_default_context(cafile=str(small.root))
    assert urllib.request.urlopen(small.url("a.example.org"), context=context).read() == b"here"
    head, text = door(small, "/metrics")
    assert "text/plain; version=0.0.4" in head
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), checked
    head, text = door(small, "/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert "application/openmetrics-text" in head and text.endswith("# EOF\n")


def test_the_dashboard_asks_only_for_metrics_that_there_are(small):
    context = ssl.create_default_context(cafile=str(small.root))
    assert urllib.request.urlopen(small.url("a.example.org"), context=context).read() == b"here"
    _, text = door(small, "/metrics")
    there = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    dashboard = json.loads((ROOT / "config/grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"vestibule_\w+", target["expr"])}
    assert asked and {name.removesuffix("_bucket") for name in asked} <= there, asked - there


# systemd


@needs("systemd-analyze")
def test_systemd_has_nothing_to_say_against_the_units(tmp_path):
    for name in ("vestibule.service", "vestibule.socket"):
        text = (ROOT / "config" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/vestibule", str(BINARY)))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", tmp_path / "vestibule.service", tmp_path / "vestibule.socket"],
                              capture_output=True, text=True)
    ours = [line for line in verified.stderr.splitlines() if "vestibule" in line]
    assert verified.returncode == 0 and not ours, verified.stderr
    scored = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / "vestibule.service"],
                            capture_output=True, text=True)
    assert scored.returncode == 0, scored.stdout[-600:] + scored.stderr


def test_systemd_is_told_of_every_step(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(20)
        edge = Edge(tmp_path, SITES, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notified.recv(4096).decode().strip() == "READY=1"
        edge.process.send_signal(signal.SIGHUP)
        reloading = notified.recv(4096).decode()
        assert "RELOADING=1" in reloading and "MONOTONIC_USEC=" in reloading
        assert notified.recv(4096).decode().strip() == "READY=1"
        assert edge.stop() == 0
        assert notified.recv(4096).decode().strip() == "STOPPING=1"


def test_with_sockets_that_systemd_holds_a_restart_refuses_nobody(tmp_path):
    held = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(2)]
    ports = [one.getsockname()[1] for one in held]
    # What systemd does between fork and exec; bash, since its redirections take any number.
    fds = " ".join(f"{3 + index}<&{one.fileno()}" for index, one in enumerate(held))
    within = ["bash", "-c", f'exec {fds}; export LISTEN_FDS=2 LISTEN_PID=$$; exec "$@"', "bash"]
    start = lambda: Edge(tmp_path, SITES, ports=ports, within=within, pass_fds=[one.fileno() for one in held])
    edge = start()
    failures, answers, over = [], [], threading.Event()

    def visit():
        context = ssl.create_default_context(cafile=str(edge.root))
        while not over.is_set():
            try:
                answers.append(urllib.request.urlopen(edge.url("a.example.org"), context=context, timeout=20).read())
            except OSError as error:
                failures.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        for _ in range(5):
            seen = len(answers)
            wait_for("visitors", lambda: len(answers) > seen + 20, 20)
            assert edge.stop() == 0
            edge = start()
    finally:
        over.set()
        for visitor in visitors:
            visitor.join(30)
        edge.stop()
        for one in held:
            one.close()
    assert not failures and set(answers) == {b"here"}, failures[:5]
    assert "inherited" not in edge.log()
