"""The staging side of Let's Encrypt, which is asked first after a failure: it only saves failures, and holds nothing up."""

import json
import time

import pytest

from acme import Between, Edge, Pebble, free_port, needs_pebble, wait_for
from test_acme_faults import has_mounts, in_own_mounts

HOST = "matrix.example.org"
PRODUCTION, STAGING = "acme-v02.api.letsencrypt.org", "acme-staging-v02.api.letsencrypt.org"
# Its names are known in HTTPS at the usual port only.
ADDRESS = "127.0.0.77"

REFUSED = (400, {"Content-Type": "application/problem+json"},
           b'{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"not today"}')
LIMITED = (429, {"Retry-After": "86400", "Content-Type": "application/problem+json"},
           b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many requests"}')

pytestmark = [needs_pebble, pytest.mark.skipif(not has_mounts, reason="no user namespaces here")]


@pytest.mark.parametrize("answer, pause", [((500, {}, b"oops"), 30), (LIMITED, 86400)], ids=["down", "limiting"])
def test_staging_that_is_down_or_limits_us_does_not_hold_up_production(tmp_path, answer, pause):
    asked = []

    def directory(request):
        asked.append(request.headers["Host"])
        if asked[-1] == STAGING:
            return answer
        request.path = "/dir"

    ports = (free_port(), free_port())
    ca = Pebble(tmp_path, *ports)
    try:
        between = Between(ca, (ADDRESS, 443))
    except PermissionError:
        ca.stop()
        pytest.skip("port 443 cannot be had here")
    between.hooks |= {"/directory": directory, "/order-plz": lambda _: REFUSED}
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {PRODUCTION} {STAGING}\n")
    within = in_own_mounts(tmp_path, f"mount --bind {tmp_path}/hosts /etc/hosts")
    edge = Edge(tmp_path / "edge", "letsencrypt", ports, [HOST], tmp_path / "ca.pem", within=within)
    try:
        wait_for("a failure", lambda: edge.status()[HOST]["failures"] == 1, 60)
        assert asked == [PRODUCTION], "without a failure nothing is rehearsed"
        edge.stop()
        del between.hooks["/order-plz"]
        state = json.loads(edge.stored(HOST).read_text())
        edge.stored(HOST).write_text(json.dumps(state | {"not_before": None}))
        edge.start()
        wait_for("a certificate", lambda: edge.served(HOST), 20)
        assert STAGING in asked and asked[-1] == PRODUCTION, asked
        paces = {"staging" in path.name: json.loads(path.read_text()) for path in (edge.folder / "state/accounts").glob("*.pace.json")}
        assert 0 < paces[True]["paused_until"] / 1000 - time.time() <= pause, "its wait is its own"
        assert paces[False]["paused_until"] is None, paces
    finally:
        edge.stop()
        ca.stop()
        between.shutdown()
        between.server_close()
