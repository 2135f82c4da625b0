"""Names that are proven in DNS: a command, dynamic updates to a real server (BIND), and the lasting record of dns-persist-01."""

import json
import shutil
import ssl
import subprocess

import pytest

from acme import BINARY, Edge, Pebble, free_port, needs_pebble, plain_sites, stage, wait_for  # noqa: F401

pytestmark = needs_pebble

WILD = "*.example.org"


def names_of(certificate):
    text = subprocess.run(["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=ssl.DER_cert_to_PEM_cert(certificate),
                          capture_output=True, text=True).stdout
    return text.split("\n", 1)[1].strip()


def hook(folder, management, body='exec curl -sf -d "$data" "$to"'):
    """Sets and clears records of pebble's DNS, and notes how it was called."""
    path = folder / "dns-hook"
    path.write_text(f"""#!/bin/sh
echo "$*" >> {folder}/called
case $1 in
present) to=http://127.0.0.1:{management}/set-txt; data='{{"host":"'$2'.","value":"'$3'"}}';;
cleanup) to=http://127.0.0.1:{management}/clear-txt; data='{{"host":"'$2'."}}';;
esac
{body}
""")
    path.chmod(0o755)
    return path


def edge_behind_nat(tmp_path, ca, ports, more, sites):
    """Its listeners are where pebble does not look."""
    return Edge(tmp_path / "edge", ca.directory, ports, ca=tmp_path / "ca.pem", more=more, sites=sites)


@pytest.fixture
def behind_nat(tmp_path):
    started = []

    def build(more, sites, **pebble):
        ca = Pebble(tmp_path, free_port(), free_port(), **pebble)
        started.append(ca)
        more = more(ca) if callable(more) else more
        edge = edge_behind_nat(tmp_path, ca, (free_port(), free_port()), more, sites)
        started.append(edge)
        return ca, edge

    yield build
    for one in reversed(started):
        one.stop()


def test_a_wildcard_is_ordered_by_a_command_from_behind_nat_and_serves_one_label(behind_nat, tmp_path):
    dns = lambda ca: f'dns = {{ command = ["{hook(tmp_path, ca.dns_management)}"], nameservers = ["127.0.0.1:{ca.dns_port}"] }}'
    sites = plain_sites([WILD]) + '\n[sites."own.example.org"]\ntls = "wildcard"\nredirect = "https://example.org"\n'
    ca, edge = behind_nat(dns, sites)
    wait_for("a certificate", lambda: edge.served("any.example.org"), 90)
    assert names_of(edge.served("any.example.org")) == "DNS:*.example.org"
    assert names_of(edge.served("own.example.org")) == "DNS:*.example.org", "used where the file says so"
    assert edge.served("a.b.example.org") is None and edge.served("example.org") is None
    called = (tmp_path / "called").read_text().split("\n")
    assert called[0].startswith("present _acme-challenge.example.org ") and len(called[0].split()[2]) == 43
    wait_for("the end", lambda: "cleanup" in (tmp_path / "called").read_text(), 10)


def test_a_command_that_fails_is_told_with_its_words(behind_nat, tmp_path):
    dns = lambda ca: f'dns = {{ command = ["{hook(tmp_path, 1, "echo the zone is frozen >&2; exit 7")}"] }}'
    ca, edge = behind_nat(dns, plain_sites([WILD]))
    wait_for("the reason", lambda: edge.status()[WILD]["failures"], 60)
    reason = edge.status()[WILD]["last_error"]
    assert "the zone is frozen" in reason and "7" in reason and "dns-01" in reason, reason


def test_the_ca_is_told_only_when_the_authoritative_server_has_the_record(behind_nat, tmp_path):
    dns = lambda ca: (f'dns = {{ command = ["{hook(tmp_path, 1, "exit 0")}"], nameservers = ["127.0.0.1:{ca.dns_port}"], '
                      'propagation_timeout = "1s" }')
    ca, edge = behind_nat(dns, plain_sites([WILD]))
    wait_for("the reason", lambda: edge.status()[WILD]["failures"], 60)
    assert "does not have the record _acme-challenge.example.org" in edge.status()[WILD]["last_error"]
    assert ca.count("Pulled a task from the Tasks queue") == 0, "the CA was not asked to validate"


def test_dns_persist_needs_one_record_that_a_command_prints(behind_nat, tmp_path):
    more = lambda ca: f'challenges = "dns-persist-01"\ndns = {{ nameservers = ["127.0.0.1:{ca.dns_port}"] }}'
    ca, edge = behind_nat(more, plain_sites([WILD]))
    wait_for("the reason", lambda: edge.status()[WILD]["failures"], 60)
    assert "there is no TXT record _validation-persist.example.org" in edge.status()[WILD]["last_error"]
    printed = subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "dns-record", WILD], capture_output=True, text=True)
    assert printed.returncode == 0, printed
    name, value = printed.stdout.strip().split(" IN TXT ")
    assert name == "_validation-persist.example.org." and value.endswith('; policy=wildcard"') and "accounturi=https://" in value
    ca.set_text("_validation-persist.example.org", f"{value[1:].split(chr(59))[0]}; accounturi=https://other/1; policy=wildcard")
    subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "renew", WILD], check=True, capture_output=True)
    renew = [BINARY, "--config", edge.folder / "vestibule.toml", "renew", WILD]
    wait_for("another account to be told", lambda: "names another account" in edge.status()[WILD]["last_error"], 60)
    ca.clear_text("_validation-persist.example.org")
    ca.set_text("_validation-persist.example.org", value.strip('"'))
    subprocess.run(renew, check=True, capture_output=True)
    wait_for("a certificate", lambda: edge.served("any.example.org"), 90)
    assert names_of(edge.served("any.example.org")) == "DNS:*.example.org"
    doctor = lambda: json.loads(subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "doctor", "--json"],
                                               capture_output=True, text=True).stdout)["findings"]
    verdicts = lambda: {finding["id"]: finding["verdict"] for finding in doctor()}
    assert verdicts()["ca.dns_persist"] == verdicts()["ca.clock"] == "ok"
    # Long before the next order: somebody has removed it.
    ca.clear_text("_validation-persist.example.org")
    assert verdicts()["ca.dns_persist.record"] == "fail"
    subprocess.run([BINARY, "--config", edge.folder / "vestibule.toml", "reload"], check=True, capture_output=True)
    wait_for("the warning", lambda: "there is no TXT record" in (edge.status()[WILD]["warning"] or ""), 20)
    assert edge.status()[WILD]["failures"] == 0 and "dns-record" in edge.log()


class Bind:
    """An authoritative server for example.org that takes signed updates."""

    def __init__(self, folder):
        folder.mkdir()
        self.port = free_port()
        self.secret = "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3JlISEhISE="
        (folder / "example.org.zone").write_text(
            "$ORIGIN example.org.\n$TTL 5\n@ SOA ns hostmaster 1 60 60 60 5\n@ NS ns\nns A 127.0.0.1\n"
            "_acme-challenge.alias CNAME alias._acme.example.org.\n")
        (folder / "named.conf").write_text(f"""
key "acme" {{ algorithm hmac-sha256; secret "{self.secret}"; }};
options {{ directory "{folder}"; pid-file "{folder}/pid"; session-keyfile "{folder}/session";
  listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; notify no; dnssec-validation no; }};
controls {{ }};
zone "example.org" {{ type primary; file "example.org.zone"; update-policy {{ grant acme zonesub TXT; }}; }};
""")
        self.process = subprocess.Popen(["named", "-g", "-c", folder / "named.conf", "-n", "1"], cwd=folder,
                                        stdout=open(folder / "out", "w"), stderr=subprocess.STDOUT)
        wait_for("BIND", lambda: "running" in (folder / "out").read_text(), 20)
        self.log = folder / "out"

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def bind(tmp_path):
    if not shutil.which("named"):
        pytest.skip("BIND cannot be had here")
    server = Bind(tmp_path / "bind")
    yield server
    server.stop()


def test_dynamic_updates_prove_a_wildcard_and_its_parent_and_an_alias_at_once(behind_nat, bind):
    more = (f'dns = {{ provider = "rfc2136", server = "127.0.0.1:{bind.port}", key_name = "acme", key_secret = "{bind.secret}", '
            f'nameservers = ["127.0.0.1:{bind.port}"] }}\nchallenges = "dns-01"')
    hosts = [WILD, "example.org", "alias.example.org"]
    ca, edge = behind_nat(more, plain_sites(hosts), resolver=f"127.0.0.1:{bind.port}")
    wait_for("certificates", lambda: all(edge.status()[host]["not_after"] for host in hosts), 120)
    assert names_of(edge.served("any.example.org")) == "DNS:*.example.org"
    assert names_of(edge.served("example.org")) == "DNS:example.org"
    assert "adding an RR at 'alias._acme.example.org' TXT" in bind.log.read_text()
    wait_for("the records to go", lambda: bind.log.read_text().count("deleting an RR") >= 3, 20)


def test_a_key_that_the_server_refuses_is_told(behind_nat, bind):
    more = (f'dns = {{ provider = "rfc2136", server = "127.0.0.1:{bind.port}", zone = "example.org", key_name = "acme", '
            'key_secret = "d3Jvbmc=" }\nchallenges = "dns-01"')
    ca, edge = behind_nat(more, plain_sites([WILD]), resolver=f"127.0.0.1:{bind.port}")
    wait_for("the reason", lambda: edge.status()[WILD]["failures"], 60)
    reason = edge.status()[WILD]["last_error"]
    assert "NOTAUTH" in reason and "d3Jvbmc" not in reason + edge.log(), reason


def test_a_wildcard_without_a_proof_in_dns_is_an_error_of_check(tmp_path):
    config = tmp_path / "vestibule.toml"
    check = lambda text: (config.write_text(text), subprocess.run([BINARY, "check", "--config", config], capture_output=True, text=True))[1]
    site = 'sites."*.example.org".upstream = "http://127.0.0.1:1"\n'
    failed = check(site)
    assert failed.returncode == 78 and "no CA signs a wildcard without a proof in DNS" in failed.stderr
    assert check('acme.dns = { command = ["/bin/true"] }\n' + site).returncode == 0
    assert check('acme.challenges = "dns-persist-01"\n' + site).returncode == 0
    missing = check('acme.challenges = "dns-01"\n' + site)
    assert missing.returncode == 78 and "needs a provider" in missing.stderr
