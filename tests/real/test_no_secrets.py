"""The check that reads every log of a run (`no_secret_in_any_log`): it finds a secret, and only a secret."""

import base64
import hashlib
import json

import pytest

from conftest import secrets_in


def token(algorithm, claims, signature=b""):
    parts = [json.dumps(part).encode() for part in ({"alg": algorithm, "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in [*parts, signature])


CALL = token("HS256", {"sub": "@alice:example.org", "video": {"roomJoin": True}}, hashlib.sha256(b"secret").digest())
UNSIGNED = token("none", {"sub": "@alice:example.org"})


@pytest.mark.parametrize("line", [
    f'{{"uri":"/rtc?access_token={CALL}"}}',
    f'{{"uri":"/rtc?at={CALL}&x=1"}}',
    f"token: {CALL}",
    f"Authorization=Bearer%20{CALL}",
    f"token: {UNSIGNED}",
    '{"uri":"/sync?access_token=syt_YWxpY2U_abcdef_123"}',
    "Authorization: Bearer syt_YWxpY2U_abcdef_123",
    '{"uri":"/login?loginToken=abcdefgh"}',
    "password: a long password",
])
def test_a_secret_is_found(line):
    assert secrets_in(line)


@pytest.mark.parametrize("line", [
    # The token of a challenge may begin as a JWT does.
    '{"uri":"/.well-known/acme-challenge/eyJhbGciOiJIUzI1NiJ9xYzEkQ-5w_7"}',
    '{"uri":"/.well-known/acme-challenge/eyJabcdefgh.eyJijklmnop.qrs"}',
    '{"uri":"/rtc?access_token=REDACTED&loginToken=REDACTED"}',
    '{"host":"jwt.matrixrtc.example.org","addr":"127.0.0.1:443","version":"0.1.0"}',
])
def test_what_is_no_secret_is_not_taken_for_one(line):
    assert not secrets_in(line)
