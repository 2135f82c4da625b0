"""What goes wrong between an edge and its CA, and on its disk: nothing is lost, nothing is ordered twice, and the reason
is told."""

import base64
import calendar
import fcntl
import json
import shutil
import subprocess
import threading
import time

import pytest

from acme import BINARY, HOSTS, ROOT, Edge, Pebble, broken, free_port, needs_pebble, stage, wait_for  # noqa: F401

pytestmark = needs_pebble

HOST = "example.org"
HOUR, DAY = 3600, 86400


def failure(edge, host=HOST, seconds=60):
    wait_for("the reason", lambda: edge.status()[host]["failures"] > 0, seconds)
    return edge.status()[host]["last_error"]


# Restarts


@pytest.mark.parametrize("step", ["/chalZ/", "/finalize-order/", "/certZ/"])
def test_an_order_in_flight_goes_on_after_a_kill(stage, step):
    reached, killed = threading.Event(), threading.Event()

    def hold(request):
        if not killed.is_set():
            reached.set()
            killed.wait(30)
            raise ConnectionError("the edge is gone")

    ca, edge = stage(hosts=[HOST], between={step: hold})
    assert reached.wait(60)
    edge.kill()
    killed.set()
    edge.start()
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    assert ca.between.count("/order-plz") == 1, ca.between.seen
    wait_for("the line", lambda: "taken up again" in edge.log(), 5)
    assert json.loads(edge.stored(HOST).read_text())["pending"] is None


def test_an_order_that_the_ca_does_not_know_any_more_is_placed_again(stage):
    ca, edge = stage(hosts=[HOST])
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    edge.stop()
    state = json.loads(edge.stored(HOST).read_text())
    state |= {"chain": "", "pending": {"directory": ca.directory, "url": f"{ca.directory[:-4]}/my-order/none", "key": state["key"]}}
    edge.stored(HOST).write_text(json.dumps(state))
    edge.start()
    wait_for("a certificate", lambda: edge.served(HOST), 60)


def test_a_process_that_waits_for_another_ends_when_it_is_told_to(tmp_path):
    """Another process holds the lock of the order; it may hold it for minutes."""
    (tmp_path / "edge/state").mkdir(parents=True, mode=0o700)
    directory, shutdown = broken((500, {}, b""))
    with open(tmp_path / f"edge/state/.order-{HOST}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        edge = Edge(tmp_path / "edge", directory, (free_port(), free_port()), [HOST])
        time.sleep(0.5)
        began = time.monotonic()
        edge.stop()
        assert edge.process.returncode == 0 and time.monotonic() - began < 5
    shutdown()


# The CA


def test_four_names_share_one_account_even_when_it_has_to_be_made_again(stage):
    ca, edge = stage(between={}, lifetime=90 * DAY)
    wait_for("certificates", edge.has_all, 60)
    # badNonce may have had it tried again; one was made.
    made = lambda: [status for path, status in ca.between.seen if path == "/sign-me-up"].count(201)
    assert made() == 1, ca.between.seen
    ca.forget()
    for host in HOSTS:
        subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "renew", host], check=True, capture_output=True)
    wait_for("others", lambda: ca.count("Issued certificate serial") == 8, 90)
    assert made() == 2
    assert len(list((edge.folder / "state/accounts").glob("*.forgotten-*"))) == 1


def test_a_damaged_account_is_set_aside_and_told(stage):
    ca, edge = stage(hosts=[HOST])
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    # Beside it are the pace of its orders and the CA's names in DNS.
    [account] = (path for path in (edge.folder / "state/accounts").glob("*.json") if path.suffixes == [".json"])
    account.write_text("{ broken")
    edge.renew(HOST)
    wait_for("the line", lambda: "the stored account is damaged" in edge.log(), 5)
    assert list(account.parent.glob("*.damaged-*"))


def test_another_ca_in_the_file_is_asked_at_once_and_the_old_certificate_served_meanwhile(tmp_path):
    """From staging to the real one: nobody wants to wait for two months, and nobody wants an outage."""
    ports = (free_port(), free_port())
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    staging, real = Pebble(tmp_path / "one", *ports), Pebble(tmp_path / "two", *ports)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "one/ca.pem").read_text() + (tmp_path / "two/ca.pem").read_text())
    edge = Edge(tmp_path / "edge", staging.directory, ports, [HOST], both)
    try:
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        first, config = edge.served(HOST), edge.folder / "vestibule.toml"
        config.write_text(config.read_text().replace(staging.directory, real.directory))
        seen = []
        wait_for("the other CA's", lambda: seen.append(edge.served(HOST)) or seen[-1] != first, 60)
        assert None not in seen and real.count("Issued certificate serial") == 1
        edge.stop()
        edge.start()
        time.sleep(1)
        assert real.count("Issued certificate serial") == 1, "and once only"
    finally:
        for one in (edge, staging, real):
            one.stop()


def test_a_wait_that_no_ca_can_mean_is_cut_and_told(tmp_path):
    answer = (429, {"Retry-After": str(2**64 - 1), "Content-Type": "application/problem+json"},
              b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}')
    directory, shutdown = broken(answer)
    edge = Edge(tmp_path / "edge", directory, (free_port(), free_port()), [HOST])
    try:
        assert "too many" in failure(edge)
        not_before = json.loads(edge.stored(HOST).read_text())["not_before"]
        assert time.time() + 6 * DAY < not_before < time.time() + 8 * DAY
        # The limit is kept by the next process as well, and by whoever changes the file meanwhile.
        edge.stop()
        edge.start()
        wait_for("the plan", lambda: edge.status()[HOST]["next"], 30)
        assert edge.status()[HOST]["failures"] == 1
    finally:
        edge.stop()
        shutdown()


def test_a_ca_that_wants_every_certificate_replaced_at_once_gets_one_order_a_day(stage):
    window = {"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}}
    answer = lambda _: (200, {"Retry-After": "60", "Content-Type": "application/json"}, json.dumps(window).encode())
    ca, edge = stage(hosts=[HOST], between={"/draft-ietf-acme-ari": answer, "/renewal": answer})
    wait_for("one and its replacement", lambda: ca.count("Issued certificate serial") == 2, 60)
    edge.stop()
    edge.start()
    wait_for("the plan", lambda: planned(edge) and planned(edge) > time.time() + DAY / 2, 30)
    assert ca.count("Issued certificate serial") == 2


def test_a_site_that_goes_and_comes_back_while_its_order_is_in_flight_has_it_taken_up(stage):
    reached, back = threading.Event(), threading.Event()

    def hold(_):
        if not back.is_set():
            reached.set()
            back.wait(30)

    ca, edge = stage(hosts=[HOST, "other.example.org"], between={"/finalize-order/": hold})
    assert reached.wait(60)
    config = edge.folder / "vestibule.toml"
    both = config.read_text()
    one = both.split(f'[sites."{HOST}"', 1)
    config.write_text(one[0] + '[sites."other' + one[1].split('[sites."other', 1)[1])
    wait_for("the reload", lambda: edge.log().count("the new configuration is in effect") == 1, 20)
    config.write_text(both)
    wait_for("the reload", lambda: edge.log().count("the new configuration is in effect") == 2, 20)
    back.set()
    wait_for("certificates", lambda: edge.has_all([HOST, "other.example.org"]), 90)
    assert ca.between.count("/order-plz") == 2, ca.between.seen


def test_an_account_that_the_ca_has_forgotten_is_made_again(stage):
    ca, edge = stage(hosts=[HOST])
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    ca.forget()
    edge.renew(HOST)
    wait_for("the line", lambda: "does not know our account" in edge.log(), 5)
    assert edge.status()[HOST]["failures"] == 0


def test_a_certificate_that_was_replaced_already_is_ordered_once_more_without(stage):
    ca, edge = stage(hosts=[HOST], between={})
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    first = edge.stored(HOST).read_text()
    edge.renew(HOST)
    # A backup is put back: the CA has seen the replacement of what we hold now.
    edge.stop()
    edge.stored(HOST).write_text(first)
    edge.start()
    edge.renew(HOST)
    orders = [status for path, status in ca.between.seen if path == "/order-plz"]
    assert orders == [201, 201, 409, 201], "pebble refused the one that replaces what was replaced"
    assert edge.status()[HOST]["failures"] == 0


@pytest.mark.parametrize("answer", [
    (500, {"Content-Type": "text/html"}, b"<html>oops</html>"),
    (429, {"Retry-After": "3600", "Content-Type": "application/problem+json"},
     b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}'),
])
def test_a_ca_that_is_broken_or_has_enough_of_us_is_passed_over_at_once(tmp_path, answer):
    ports = (free_port(), free_port())
    directory, shutdown = broken(answer)
    ca = Pebble(tmp_path, *ports)
    edge = Edge(tmp_path / "edge", [directory, ca.directory], ports, [HOST], tmp_path / "ca.pem")
    try:
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        assert json.loads(edge.stored(HOST).read_text())["directory"] == ca.directory
    finally:
        edge.stop()
        ca.stop()
        shutdown()


def test_a_name_that_one_ca_does_not_believe_is_taken_to_the_next_after_three_failures(tmp_path):
    ports = (free_port(), free_port())
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    blind, seeing = Pebble(tmp_path / "one", free_port(), free_port()), Pebble(tmp_path / "two", *ports)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "one/ca.pem").read_text() + (tmp_path / "two/ca.pem").read_text())
    edge = Edge(tmp_path / "edge", [blind.directory, seeing.directory], ports, [HOST], both)
    try:
        failure(edge)
        assert seeing.count("Added order") == 0, "a name that fails at one CA is not thrown at all of them"
        edge.stop()
        state = json.loads(edge.stored(HOST).read_text())
        edge.stored(HOST).write_text(json.dumps(state | {"failures": 3, "not_before": None}))
        edge.start()
        wait_for("a certificate", lambda: edge.served(HOST), 60)
        assert json.loads(edge.stored(HOST).read_text())["directory"] == seeing.directory
    finally:
        for one in (edge, blind, seeing):
            one.stop()


def test_nine_of_ten_nonces_refused_are_outlasted(stage):
    ca, edge = stage(hosts=[HOST], nonce_reject=90)
    wait_for("a certificate", lambda: edge.served(HOST), 180)


def test_a_slow_validation_is_waited_for(stage):
    ca, edge = stage(hosts=[HOST], slow=6)
    wait_for("a certificate", lambda: edge.served(HOST), 90)
    assert ca.count("Added order") == 1


def test_an_account_bound_to_another_is_made(stage):
    key = base64.urlsafe_b64encode(b"a key of thirty-two bytes, or so").decode().rstrip("=")
    keys = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": key}}
    ca, edge = stage(hosts=[HOST], more=f'eab_kid = "kid-1"\neab_hmac_key = "{key}"', **keys)
    wait_for("a certificate", lambda: edge.served(HOST), 60)


@pytest.mark.parametrize("more, words", [
    ("", "xternal"),
    ('eab_kid = "kid-2"\neab_hmac_key = "YSBrZXkgb2YgdGhpcnR5LXR3byBieXRlcywgb3Igc28"', "'kid' references a key that is not known"),
])
def test_a_ca_that_wants_another_binding_says_so(stage, more, words):
    keys = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}
    ca, edge = stage(hosts=[HOST], more=more, **keys)
    assert "no account" in failure(edge) and words in failure(edge)
    assert ca.count("Added order") == 0


def test_an_expired_certificate_is_served_while_the_ca_is_away(stage):
    ca, edge = stage(hosts=[HOST], lifetime=6)
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    ca.stop()
    metrics = lambda: subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "status"], capture_output=True, text=True).stdout
    ends = lambda: edge.status()[HOST]["not_after"]
    wait_for("its end", lambda: ends() < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), 30)
    assert edge.served(HOST)
    edge.stop()
    edge.start()
    assert edge.served(HOST), "after a restart as well"
    assert failure(edge) and HOST in metrics()


# When to renew


def asked_again(edge):
    """A restart asks the CA for its window."""
    edge.stop()
    edge.start()


def planned(edge):
    return json.loads(edge.stored(HOST).read_text())["renew_at"]


def test_the_window_of_the_ca_is_followed_where_it_makes_sense(stage):
    ca, edge = stage(hosts=[HOST])
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    first, now = edge.served(HOST), int(time.time())
    for window in ((now + 10 * DAY, now + 11 * DAY), (now + 20 * DAY, now + 21 * DAY)):
        ca.suggest(first, window)
        asked_again(edge)
        wait_for("an instant of the window", lambda: planned(edge) and window[0] <= planned(edge) <= window[1], 30)
        # Asked again, the same instant stays: many restarts do not draw the earliest of many.
        before = planned(edge)
        asked_again(edge)
        wait_for("the plan", lambda: edge.status()[HOST]["next"], 30)
        assert planned(edge) == before
    # It ends before it begins, it is empty, it is after the certificate's end: a third of the lifetime counts.
    for window in ((now + 9 * DAY, now + 8 * DAY), (now + 8 * DAY, now + 8 * DAY), (now + 900 * DAY, now + 901 * DAY)):
        ca.suggest(first, window)
        asked_again(edge)
        wait_for("the plan without it", lambda: planned(edge) is None, 30)
    assert edge.served(HOST) == first
    ca.suggest(first, (now - 2 * DAY, now - DAY))
    asked_again(edge)
    wait_for("another certificate, at once", lambda: edge.served(HOST) != first, 60)


@pytest.mark.parametrize("answer", [(404, {}, b"none"), (200, {"Retry-After": "60"}, b"{ garbage"), (500, {}, b"")])
def test_a_ca_without_a_window_leaves_a_third_of_the_lifetime(stage, answer):
    asked = threading.Event()
    ca, edge = stage(hosts=[HOST], between={"/draft-ietf-acme-ari": lambda _: asked.set() or answer, "/renewal": lambda _: asked.set() or answer})
    wait_for("a certificate", lambda: edge.served(HOST), 60)
    assert asked.wait(30)
    state = json.loads(edge.stored(HOST).read_text())
    assert state["renew_at"] is None and state["failures"] == 0
    wait_for("the plan", lambda: edge.status()[HOST]["next"], 30)
    # Of the ninety days that pebble signs: sixty, and up to three more by which names are spread.
    planned = calendar.timegm(time.strptime(edge.status()[HOST]["next"], "%Y-%m-%dT%H:%M:%SZ"))
    assert 60 * DAY - 3600 <= planned - time.time() <= 63 * DAY, edge.status()


# The disk


def in_own_mounts(folder, mount):
    """A command's beginning that runs it with a file system of its own over the storage."""
    return ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]


has_mounts = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_mounts, reason="no user namespaces here")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_storage_that_is_full_or_read_only_orders_nothing_and_says_so(tmp_path, kind):
    state = tmp_path / "edge/state"
    state.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size=4k tmpfs {state} && head -c 4096 /dev/zero > {state}/filling"
    if kind == "read-only":
        mount = f"mount -t tmpfs -o ro tmpfs {state}"
    ports = (free_port(), free_port())
    ca = Pebble(tmp_path, *ports)
    edge = Edge(tmp_path / "edge", ca.directory, ports, [HOST], tmp_path / "ca.pem", within=in_own_mounts(state, mount))
    try:
        wait_for("the reason", lambda: "nothing is ordered" in edge.log(), 30)
        words = "No space left" if kind == "full" else "Read-only"
        assert words in edge.status()[HOST]["last_error"]
        assert ca.count("Added order") == 0
    finally:
        edge.stop()
        ca.stop()


def test_a_kill_at_any_step_of_a_save_leaves_what_was_there_or_what_was_meant(tmp_path):
    """strace kills the process as it enters the n-th call that touches the storage, for every n there is."""
    if not shutil.which("strace"):
        pytest.skip("strace cannot be had here")
    config = tmp_path / "vestibule.toml"
    config.write_text(f'[storage]\npath = "{tmp_path}/state"\n[tls]\ncertificates = "internal"\n[sites."a.example.org"]\nredirect = "https://b.example.org"\n')
    command = [BINARY, "--config", config, "ca"]
    calls = "openat,write,fsync,rename,unlink,mkdir,chmod,flock"
    steps = killed = 0
    while killed < 50:
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        steps += 1
        traced = ["strace", "-f", "-qq", "-o", tmp_path / "trace", "-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={steps}"]
        outcome = subprocess.run([*traced, *command], capture_output=True)
        after = subprocess.run(command, capture_output=True, text=True)
        assert after.returncode == 0 and "BEGIN CERTIFICATE" in after.stdout, (steps, after)
        assert subprocess.run(command, capture_output=True, text=True).stdout == after.stdout, "the root and its key stay"
        assert not list((tmp_path / "state").rglob("*damaged*")), steps
        if outcome.returncode == 0:
            assert steps > 10, (tmp_path / "trace").read_text()[-2000:]
            steps = 0
        else:
            killed += 1


# The whole deployment


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_the_guides_deployment_gets_its_certificates_by_itself_and_keeps_them(stage, kind):
    lines = (ROOT / "config/vestibule.toml").read_text().split("[matrix]", 1)
    hosts = ["matrix.example.org", "jwt.matrixrtc.example.org", "matrixrtc.example.org", "turn.example.org", "example.org"]
    ca, edge = stage(sites="[matrix]" + lines[1], more=f'challenges = ["{kind}"]')
    wait_for("certificates", lambda: edge.has_all(hosts), 90)
    first = [edge.served(host) for host in hosts]
    edge.stop()
    edge.start()
    assert [edge.served(host) for host in hosts] == first
    wait_for("the plan", lambda: all(edge.status()[host]["next"] for host in hosts), 30)
    assert ca.count("Issued certificate serial") == len(hosts)
