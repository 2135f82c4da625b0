"""A storage that hangs, as a network file system does whose server is gone, and trust anchors that change."""

import os
import signal
import subprocess
import time

import pytest

from acme import BINARY, Edge, Pebble, free_port, make_authority, needs_pebble, plain_sites, stage, wait_for  # noqa: F401

HOST, OTHER = "matrix.example.org", "other.example.org"


def hang(path):
    """Whoever opens the file from now on waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def command(edge, *words):
    """Asks the running edge, which answers at once."""
    began = time.monotonic()
    done = subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done
    assert time.monotonic() - began < 3, f"{words} waited for the storage"
    return done.stdout


def assert_nothing_waits(edge):
    """Serving, the admin listener, a reload and a signal."""
    assert edge.served(OTHER)
    assert HOST in command(edge, "status")
    command(edge, "reload")
    assert edge.served(OTHER)
    began = time.monotonic()
    edge.process.send_signal(signal.SIGTERM)
    assert edge.process.wait(15) == 0 and time.monotonic() - began < 3


def test_an_edge_starts_while_the_storage_hangs(tmp_path):
    sites = plain_sites([HOST]) + f'\n[sites."{OTHER}"]\ntls = "internal"\nredirect = "https://example.org"\n'
    edge = Edge(tmp_path / "edge", "http://127.0.0.1:1/dir", (free_port(), free_port()), sites=sites)
    try:
        edge.stop()
        hang(edge.stored(HOST))
        edge.start()
        assert "the storage does not answer" in edge.log()
        assert_nothing_waits(edge)
    finally:
        edge.stop()


@needs_pebble
def test_a_storage_that_hangs_later_holds_up_its_own_order_only(stage):
    ca, edge = stage(hosts=[HOST, OTHER])
    wait_for("certificates", lambda: edge.has_all([HOST, OTHER]), 60)
    before = edge.served(HOST)
    hang(edge.stored(HOST))
    command(edge, "renew", HOST)
    edge.renew(OTHER)
    assert edge.served(HOST) == before
    assert_nothing_waits(edge)


@needs_pebble
@pytest.mark.parametrize("where", ["acme.ca_file", "the system"])
def test_trust_anchors_follow_a_reload(tmp_path, where):
    ports, is_system = (free_port(), free_port()), where == "the system"
    ca = Pebble(tmp_path, *ports)
    roots = tmp_path / "roots.pem"
    roots.write_text((tmp_path / "ca.pem").read_text())
    # Two servers to the edge, so that no connection is left of a request to the other.
    services = {"/before": "localhost", "/after": "127.0.0.1"}
    routes = [f'"{path}" = {{ upstream = "https://{host}:{ca.port}" }}' for path, host in services.items()]
    sites = "\n".join([plain_sites([HOST]), *routes])
    within = ["env", f"SSL_CERT_FILE={roots}"] if is_system else []
    edge = Edge(tmp_path / "edge", ca.directory, ports, ca=None if is_system else roots, sites=sites, within=within)
    service = lambda path: subprocess.run(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", f"{HOST}:{edge.https}:127.0.0.1",
                                      f"https://{HOST}:{edge.https}{path}"], capture_output=True, text=True).stdout
    try:
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        assert not is_system or service("/before") == "404", "pebble has no such page"
        (tmp_path / "other").mkdir()
        make_authority(tmp_path / "other")
        roots.write_text((tmp_path / "other/ca.pem").read_text())
        command(edge, "reload")
        command(edge, "renew", HOST)
        wait_for("the distrust", lambda: edge.status()[HOST]["failures"], 60)
        assert "invalid peer certificate" in edge.status()[HOST]["last_error"], edge.status()
        assert "docs.rs" not in edge.log(), "no link to the documentation of a library"
        assert service("/after") == "502"
        roots.write_text((tmp_path / "ca.pem").read_text())
        command(edge, "reload")
        if is_system:
            wait_for("the trust", lambda: service("/after") == "404", 20)
    finally:
        edge.stop()
        ca.stop()
