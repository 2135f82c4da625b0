"""pebble in a container, for those who order certificates in containers: it asks the names that its network knows, at 80 and 443."""

import json
import shutil
import ssl
import subprocess
import urllib.request

from acme import PEBBLE
from conftest import wait_for
from containers import APPLIANCE, docker

IMAGE = "pebble-for-tests"
DIRECTORY = "https://pebble:14000/dir"


def built(name, folder, program, lines):
    """An image of one program, on a base that has a libc and roots."""
    folder.mkdir(exist_ok=True)
    shutil.copy(program, folder / program.name)
    (folder / "Dockerfile").write_text(f"FROM {APPLIANCE}\nENTRYPOINT []\nHEALTHCHECK NONE\nCOPY {program.name} /usr/bin/\n{lines}\n")
    done = docker("build", "-t", name, str(folder))
    assert done.returncode == 0, done.stderr[-2000:]


def prepare(folder):
    """Its image; in the folder, its configuration for /pebble, and in `ca.pem` who has signed the certificate of its directory."""
    built(IMAGE, folder.with_name("pebble-image"), PEBBLE,
          'ENV PEBBLE_VA_NOSLEEP=1 PEBBLE_AUTHZREUSE=0\nWORKDIR /pebble\nCMD ["pebble", "-config", "pebble.json"]')
    folder.mkdir()
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=directory CA")
    run(*new, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=pebble",
        "-addext", "subjectAltName=DNS:pebble,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
    config = {"listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000", "certificate": "cert.pem",
              "privateKey": "key.pem", "httpPort": 80, "tlsPort": 443, "keyAlgorithm": "ecdsa",
              "profiles": {"default": {"description": "the usual", "validityPeriod": 90 * 86400}}}
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))


def root(folder, management):
    """The root of what it issues, once it runs; its port 15000 is published at `management`."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    read = lambda: urllib.request.urlopen(f"https://localhost:{management}/roots/0", context=context, timeout=5).read()
    wait_for("pebble", read, 30)
    return read()
