"""Tools that people point at a server: curl in its versions and moods, and h2load."""

import re
import shutil
import subprocess

import pytest

from test_http2_frames import BODY, HOST, front  # noqa: F401 (a fixture)


def curl(edge, *arguments, path="/", body=None):
    """What curl says, and its exit code."""
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "30", "--cacert", edge.root, "--resolve", f"{HOST}:{edge.https}:127.0.0.1",
         "-w", "\n%{http_version} %{http_code} %{size_download} %{num_connects}", *arguments,
         f"https://{HOST}:{edge.https}{path}"],
        input=body, capture_output=True, timeout=60,
    )
    return done.stdout.rpartition(b"\n")[2].decode().split(), done.returncode, done.stderr.decode()


@pytest.mark.parametrize("version, seen", [("--http1.0", "1.1"), ("--http1.1", "1.1"), ("--http2", "2")])
def test_curl_gets_posts_and_heads(front, version, seen):  # noqa: F811
    for arguments, size in [((), BODY), (("-I",), 0), (("-d", "hello"), BODY), (("--compressed",), BODY)]:
        said, code, why = curl(front, version, *arguments)
        assert code == 0, why
        assert said[:2] == [seen, "200"]
        assert arguments == ("-I",) or int(said[2]) == size


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("framing", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")])
def test_curl_uploads(front, version, framing):  # noqa: F811
    if version == "--http2" and "chunked" in " ".join(framing):
        framing = ()
    said, code, why = curl(front, version, *framing, "-T", "-" if not framing or "chunked" in framing[1] else __file__, body=b"u" * 300_000)
    assert code == 0, why
    assert said[1] == "200"


def test_curl_takes_the_path_as_it_is(front):  # noqa: F811
    path = "/a/../b/./%2F//c?d=%21&&"
    said, code, why = curl(front, "--path-as-is", path=path)
    assert (said[1], code) == ("200", 0), why
    assert any(seen.startswith(f"GET {path} HTTP/1.1\r\n".encode()) for seen in front.service.seen)


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load cannot be installed here")
@pytest.mark.parametrize("protocol", [(), ("--h1",)])
def test_h2load_loses_nothing(front, protocol):  # noqa: F811
    done = subprocess.run(
        ["h2load", *protocol, "-n", "5000", "-c", "20", *([] if protocol else ["-m", "20"]), "--connect-to", f"127.0.0.1:{front.https}",
         f"https://{HOST}:{front.https}/"],
        capture_output=True, text=True, timeout=120,
    )
    said = done.stdout
    assert re.search(r"requests: 5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored, 0 timeout", said), said
    assert re.search(r"status codes: 5000 2xx", said), said
