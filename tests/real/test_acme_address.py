"""IP addresses as sites (RFC 8738): certificates of a CA and of the internal one, for clients that name no site."""

import http.client
import socket
import ssl
import subprocess

import pytest

from acme import BINARY, Edge, free_port, needs_pebble, stage, wait_for  # noqa: F401
from test_acme_dns import names_of

SITE = '[sites."{0}"]\ntls = "{1}"\n[sites."{0}".routes]\n"/" = {{ respond = "{0}" }}\n'
PROFILES = {"default": {"description": "the usual", "validityPeriod": 90 * 86400},
            "shortlived": {"description": "six days", "validityPeriod": 6 * 86400}}


def shown(address, port, name=None):
    """The certificate for a hello to an address, with or without a name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=5) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
            return tls.getpeercert(binary_form=True)
    except (ssl.SSLError, ConnectionError):
        return None


def answer(address, port, host):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, port, timeout=5, context=context)
    connection.request("GET", "/", headers={"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode()


@needs_pebble
@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
def test_an_address_is_proven_by_each_challenge_and_gets_the_short_profile(stage, challenge):
    more = f'challenges = "{challenge}"'
    ca, edge = stage(more=more, sites=SITE.format("127.0.0.1", "acme"), profiles=PROFILES)
    wait_for("a certificate", lambda: shown("127.0.0.1", edge.https), 60)
    certificate = shown("127.0.0.1", edge.https)
    assert names_of(certificate) == "IP Address:127.0.0.1"
    within = subprocess.run(["openssl", "x509", "-noout", "-checkend", str(7 * 86400)],
                            input=ssl.DER_cert_to_PEM_cert(certificate), capture_output=True, text=True)
    assert within.returncode == 1, "it is for less than a week"
    assert answer("127.0.0.1", edge.https, f"127.0.0.1:{edge.https}") == (200, "127.0.0.1")
    assert shown("127.0.0.1", edge.https, "other.example.org") is None, "a name is no address"


@pytest.fixture
def edge(tmp_path):
    started = []

    def build(*hosts, listen="127.0.0.1"):
        ports = (free_port(), free_port())
        sites = "\n".join(SITE.format(host, "internal") for host in hosts)
        one = Edge(tmp_path / "edge", "letsencrypt", ports, sites=sites, listen=listen)
        started.append(one)
        return one

    yield build
    for one in started:
        one.stop()


def test_a_hello_without_a_name_gets_the_site_of_the_local_address(edge):
    one = edge("127.0.0.1", "127.0.0.2", "a.example.org", listen="0.0.0.0")
    for address in ("127.0.0.1", "127.0.0.2"):
        assert names_of(shown(address, one.https)) == f"IP Address:{address}"
        assert answer(address, one.https, address) == (200, address)
    assert shown("127.0.0.3", one.https) is None, "of several, none is meant"
    assert answer("127.0.0.1", one.https, "127.0.0.2")[0] == 421
    assert names_of(shown("127.0.0.1", one.https, "a.example.org")) == "DNS:a.example.org"


def test_the_only_address_is_meant_behind_a_translation_of_addresses(edge):
    one = edge("192.0.2.7", "a.example.org")
    assert names_of(shown("127.0.0.1", one.https)) == "IP Address:192.0.2.7"
    assert answer("127.0.0.1", one.https, "192.0.2.7") == (200, "192.0.2.7")
    assert answer("127.0.0.1", one.https, "a.example.org")[0] == 421, "its certificate does not speak for a name"


def test_an_ipv6_address_is_a_site(edge):
    one = edge("2001:DB8:0::7", listen="[::]")
    assert names_of(shown("::1", one.https)) == "IP Address:2001:DB8:0:0:0:0:0:7"
    assert answer("::1", one.https, f"[2001:db8::7]:{one.https}") == (200, "2001:DB8:0::7")


def test_check_tells_what_an_address_cannot_be(tmp_path):
    config = tmp_path / "vestibule.toml"

    def check(text):
        config.write_text(text)
        done = subprocess.run([BINARY, "check", "--config", config], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    site = lambda host: f'[sites."{host}"]\nupstream = "http://127.0.0.1:1"\n'
    assert check(site("203.0.113.7"))[0] == 0 and check(site("2001:db8::7"))[0] == 0
    status, said = check('acme.challenges = "dns-persist-01"\n' + site("203.0.113.7"))
    assert status == 78 and "an address cannot be proven in DNS" in said, said
    status, said = check(site("0.0.0.0"))
    assert status == 78 and "is no address of one machine" in said, said
    status, said = check(site("192.168.1.7"))
    assert status == 0 and "no public CA signs `192.168.1.7`: it is not a public address" in said, said
    status, said = check(site("[::1]") + site("::1"))
    assert status == 78 and "is defined twice" in said, said
