"""The JSON Schema of the file and the program: an editor accepts and rejects what `check` accepts and rejects."""

import json
import os
import subprocess
import tomllib

import jsonschema
import pytest

from conftest import BINARY, ROOT

GOLDEN = sorted((ROOT / "tests" / "config").glob("*.toml"))
EXAMPLES = [ROOT / "config" / name for name in ("vestibule.toml", "one-host.toml")]

# What only several keys together make invalid, or what a pattern cannot know. The schema accepts these files.
SPANS_KEYS = {
    "ambiguous": "two homeservers",
    "catch_all_errors": "which certificate a name has",
    "catch_all_stream": "which certificate a name has",
    "empty": "no site",
    "empty_matrix": "a table that is required by another",
    "loops": "where an upstream leads",
    "loops_of_redirects": "where redirects lead",
    "no_https": "a site with TLS and no listener",
    "no_server_name": "a homeserver without a server name",
    "one_port_errors": "on which ports the edge listens",
    "required_variables": "the environment",
    "unset": "the environment",
    "zerossl": "a CA that needs an account",
}


@pytest.fixture(scope="module")
def schema():
    printed = subprocess.run([BINARY, "schema"], check=True, capture_output=True).stdout
    schema = json.loads(printed)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read(file):
    """The file as an editor reads it, without the environment; None where it is no TOML."""
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_the_schema_agrees_with_check(schema, file):
    environment = {**os.environ, "DOMAIN": "example.org", "NETWORK": "10.0.0.0/8", "EMPTY": ""}
    valid = subprocess.run([BINARY, "check", file], capture_output=True, env=environment).returncode == 0
    document = read(file)
    if document is None:
        assert not valid
        return
    errors = [error.message for error in schema.iter_errors(document)]
    if file.stem in SPANS_KEYS:
        assert not valid and not errors, errors
    else:
        assert valid == (not errors), errors


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_name_the_schema_and_satisfy_it(schema, file):
    assert file.read_text().startswith(f"#:schema {schema.schema['$id']}\n")
    assert list(schema.iter_errors(read(file))) == []


@pytest.mark.parametrize("text", [
    'timeouts = { drain = "off" }',
    "listen = { public_port = 70000 }",
    "listen = { threads = 0 }",
    'limits = { header_bytes = "off" }',
    'listen = { https = ["443"] }',
    'listen = { trusted_proxies = ["example.org"] }',
    'matrix = { homeserver = "https://.domain.tld" }',
    'matrix = { federation = "https://matrix.example.org" }',
    'matrix = { rtc_service = ["https://a..b"] }',
    'acme = { email = "nobody" }',
    'acme = { challenges = ["dns-02"] }',
    'log = { level = "loud" }',
    'sites = { "-a.b" = {} }',
    'sites = { "a.b" = { upstream = "synapse:8008" } }',
    'sites = { "a.b" = { routes = { "x" = { respond = "x" } } } }',
    'sites = { "a.b" = { upstream = { balance = "round-robin" } } }',
    'compression = { encodings = ["deflate"] }',
])
def test_a_value_that_is_wrong_by_itself_is_rejected(schema, text):
    assert list(schema.iter_errors(tomllib.loads(text)))


@pytest.mark.parametrize("text", [
    'listen = { http = ["${HTTP}"], trusted_proxies = ["${A}/8"] }',
    'acme = { email = "${EMAIL}", directory = "${CA:-letsencrypt}", eab_hmac_key = "${KEY}" }',
    'matrix = { server_name = "${D:?set it}", homeserver = "https://matrix.${D}", rtc_transports = "${T}" }',
    'sites = { "matrix.${D}" = { kind = "${KIND}", upstream = "http://${S}:8008", max_body = "${MAX}", tls = "${TLS}" } }',
    'timeouts = { drain = "${DRAIN}" }',
    'limits = { header_bytes = "${N}KiB" }',
])
def test_a_variable_may_stand_in_every_string(schema, text):
    assert list(schema.iter_errors(tomllib.loads(text))) == []
