"""What `check` says of PEM files that clients would not accept."""

import datetime
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import BINARY

HOST = "a.example.org"
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def named(name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


CA_KEY = ec.generate_private_key(ec.SECP256R1())
CA = (x509.CertificateBuilder().subject_name(named("CA")).issuer_name(named("CA")).public_key(CA_KEY.public_key()).serial_number(1)
      .not_valid_before(NOW - 900 * DAY).not_valid_after(NOW + 900 * DAY).sign(CA_KEY, hashes.SHA256()))


def leaf(host=HOST, begins=-1, ends=10):
    """A certificate with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (x509.CertificateBuilder().subject_name(named(host)).issuer_name(CA.subject).public_key(key.public_key()).serial_number(2)
                   .not_valid_before(NOW + begins * DAY).not_valid_after(NOW + ends * DAY)
                   .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False).sign(CA_KEY, hashes.SHA256()))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem(certificate), private.decode()


def check(folder, certificate, key, tls=True):
    (folder / "cert.pem").write_text(certificate)
    (folder / "key.pem").write_text(key)
    pair = '{ cert = "cert.pem", key = "key.pem" }'
    site = f'[sites."{HOST}"]\nupstream = "http://127.0.0.1:1"\n'
    text = site + f"tls = {pair}\n" if tls else f"tls.certificates = {pair}\n" + site
    (folder / "vestibule.toml").write_text(text)
    done = subprocess.run([BINARY, "check", "--config", folder / "vestibule.toml"], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("tls", [True, False], ids=["of the site", "of all sites"])
def test_a_good_pair_is_fine(tmp_path, tls):
    certificate, key = leaf()
    status, said = check(tmp_path, certificate + pem(CA), key, tls)
    assert status == 0 and "warning" not in said, said


@pytest.mark.parametrize("what, certificate, words", [
    ("without its chain", leaf(), "the certificate stands without its chain"),
    ("for another name", leaf("b.example.org"), f"the certificate is not for {HOST}"),
    ("expired", leaf(begins=-20, ends=-10), "the certificate has expired at "),
    ("not yet valid", leaf(begins=5), "the certificate is not valid before "),
])
def test_a_certificate_that_clients_refuse_is_told(tmp_path, what, certificate, words):
    chain = "" if what == "without its chain" else pem(CA)
    status, said = check(tmp_path, certificate[0] + chain, certificate[1])
    assert status == 0 and "cert.pem" in said and words in said and "1 warning" in said, said


def test_a_key_that_does_not_fit_is_told(tmp_path):
    status, said = check(tmp_path, leaf()[0] + pem(CA), leaf()[1])
    assert status == 0 and "the key does not fit the certificate" in said, said


def test_a_site_that_none_of_several_covers_is_told(tmp_path):
    pairs = []
    for host in ["b.example.org", "c.example.org"]:
        certificate, key = leaf(host)
        (tmp_path / f"{host}.pem").write_text(certificate + pem(CA))
        (tmp_path / f"{host}.key").write_text(key)
        pairs.append(f'{{ cert = "{host}.pem", key = "{host}.key" }}')
    (tmp_path / "vestibule.toml").write_text(
        f'tls.certificates = [{", ".join(pairs)}]\n[sites."{HOST}"]\nupstream = "http://127.0.0.1:1"\n')
    done = subprocess.run([BINARY, "check", "--config", tmp_path / "vestibule.toml"], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert f"no certificate of tls.certificates is for {HOST}" in said and "1 warning" in said, said
