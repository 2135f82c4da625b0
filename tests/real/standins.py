"""Stand-ins that answer as lk-jwt-service and LiveKit do, a web server of
somebody else, and a proxy that meddles. Each can be told to be wrong in one way."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY, SECRET = "devkey", "a secret of thirty-two characters"


def _b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def jwt(claims, key=KEY, secret=SECRET):
    head = _b64(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + _b64(json.dumps({"iss": key, **claims}).encode())
    return (head + b"." + _b64(hmac.new(secret.encode(), head, hashlib.sha256).digest())).decode()


def jwt_claims(token, key=KEY, secret=SECRET):
    """The claims of a token that the key has signed and whose time is not over; None of any other."""
    try:
        head, _, signature = token.rpartition(".")
        claims = json.loads(base64.urlsafe_b64decode(head.split(".")[1] + "=="))
        good = hmac.compare_digest(_b64(hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest()), signature.encode())
    except (ValueError, IndexError):
        return None
    return claims if good and claims["iss"] == key and claims["exp"] > time.time() else None


class Service:
    """A server on a port of its own; what it answers is said by `answer(request)`."""

    def __init__(self, address="127.0.0.1", port=0, tls=None):
        service = self
        self.requests = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.body = self.rfile.read(length) if length else b""
                service.requests.append(f"{self.command} {self.path}")
                status, headers, body = service.answer(self)
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                # What follows an upgrade is the other protocol's.
                self.close_connection = self.close_connection or status == 101
                if status != 101 and not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = handle_one

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            connections = set()

            def process_request(self, request, address):
                self.connections.add(request)
                super().process_request(request, address)

            def shutdown_request(self, request):
                self.connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, *_):
                pass

        self.server = Server((address, port), Handler)
        if tls:
            # The handshake is done by the thread of the connection, or a scanner would hold up everybody.
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        """Ends its connections as well: whoever keeps one would go on talking to this one after another took its port."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def matrix_error(status, errcode, error, headers=()):
    return status, [*headers, ("Content-Type", "application/json")], json.dumps({"errcode": errcode, "error": error}).encode()


def varint(number):
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


class LiveKit(Service):
    """`old`: before 1.9.10. `deaf`: Upgrade is lost on the way to it. `debug`: run with --dev. `secret`: its own. `relay`: the URL,
    name and password of the relay that it tells to who joins, `addresses`: those at which it takes media."""

    old = deaf = debug = False
    secret = SECRET
    relay = None
    addresses = ()

    # CORS by reflection, as rs/cors does.
    def answer(self, request):
        path, _, query = request.path.partition("?")
        cors = [("Access-Control-Allow-Origin", "*")] if request.headers.get("Origin") else []
        token = urllib.parse.parse_qs(query).get("access_token", [""])[0]
        token = token or request.headers.get("Authorization", "").removeprefix("Bearer ")
        claims = jwt_claims(token, secret=self.secret) if token else None
        text = lambda status, body: (status, [*cors, ("Content-Type", "text/plain; charset=utf-8")], body)
        if token and claims is None:
            # The middleware stands before every path.
            return text(401, b"invalid authorization token")
        if path == "/":
            return text(200, b"OK")
        if path.startswith("/twirp/livekit.RoomService/"):
            if claims is None:
                body = {"code": "unauthenticated", "msg": "permissions denied"}
                return 401, [*cors, ("Content-Type", "application/json")], json.dumps(body).encode()
            return 200, [*cors, ("Content-Type", "application/json")], b"{}"
        if path == "/debug/rooms" and self.debug:
            return text(200, b"[]")
        if path.startswith("/rtc/v1") and self.old:
            return text(404, b"404 page not found\n")
        if path in ("/rtc/validate", "/rtc/v1/validate"):
            if claims and path == "/rtc/v1/validate" and "join_request=" not in query:
                return text(400, b"join_request is required")
            return text(200, b"success") if claims else text(401, b"permissions denied")
        if path in ("/rtc", "/rtc/v1") and "upgrade" in request.headers and not self.deaf:
            return self.join(request) if claims else text(401, b"permissions denied")
        return text(404, b"404 page not found\n")

    def join(self, request):
        """An upgrade, SignalResponse.join with ice_servers in a frame, and one with SignalResponse.trickle for each address."""
        key = request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        field = lambda number, content: bytes([number << 3 | 2]) + varint(len(content)) + content
        server = b"".join(field(1 + n, part.encode()) for n, part in enumerate(self.relay or ()))
        messages = [field(1, field(5, server) if self.relay else b"")]
        for n, address in enumerate(self.addresses, 1):
            candidate = json.dumps({"candidate": f"candidate:{n} 1 udp 2130706431 {address} 7882 typ host", "sdpMid": "0"})
            messages.append(field(4, field(1, candidate.encode()) + bytes([2 << 3, 1] + ([3 << 3, 1] if n == len(self.addresses) else []))))
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
        frame = lambda message: b"\x82" + (bytes([len(message)]) if len(message) < 126 else b"\x7e" + len(message).to_bytes(2)) + message
        return 101, headers, b"".join(map(frame, messages))


class Relay:
    """TURN as LiveKit speaks it behind a proxy that ends TLS: bindings, and allocations for one name and password.
    `silent`: it takes connections and says nothing."""

    silent = False

    def __init__(self, name="user", password="pass"):
        self.name, self.password = name, password
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.socket.accept()[0],), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError, struct.error):
            stream = connection.makefile("rb")
            while len(head := stream.read(20)) == 20:
                kind, length = struct.unpack(">HH", head[:4])
                answer = self._answer(kind, head, stream.read(length))
                if not self.silent:
                    connection.sendall(answer)

    def _answer(self, kind, head, body):
        attribute = lambda kind, value: struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)
        message = lambda kind, body=b"": struct.pack(">HH", kind, len(body)) + head[4:] + body
        if kind == 1:
            return message(0x0101)
        challenge = attribute(9, b"\0\0\x04\x01Unauthorized") + attribute(0x14, b"livekit") + attribute(0x15, b"nonce")
        # MESSAGE-INTEGRITY is the last one here.
        signed, tag = head + body[:-24], body[-20:]
        key = hashlib.md5(f"{self.name}:livekit:{self.password}".encode()).digest()
        good = len(body) > 24 and hmac.compare_digest(hmac.new(key, signed, hashlib.sha1).digest(), tag)
        return message(0x0103) if good else message(0x0113, challenge)

    def stop(self):
        self.socket.close()


def digest(*parts):
    """How MSC4195 names rooms and members for LiveKit."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


# The vectors of MSC4195.
assert digest("!roomid:example.com", "slot1234") == "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc"
assert digest("@alice:example.com", "DEVICE123", "memberABC") == "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU"

STABLE, UNSTABLE = "/_matrix/client/v1/rtc/livekit/", "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/"


class LkJwt(Service):
    """`old`: before 0.4. `version`: as what it behaves from 0.6 on. `url`: LIVEKIT_URL. `reaches`: whether it can ask the
    homeserver. `livekit`: where it makes rooms. `secret`: LIVEKIT_SECRET. `tokens`: those of its registration, as_token first;
    without them it is no application service."""

    old = False
    reaches = True
    secret = SECRET
    version = (0, 10)
    tokens = None

    def __init__(self, url, homeserver, livekit, **keywords):
        self.url, self.homeserver, self.livekit = url, homeserver, livekit
        super().__init__(**keywords)

    def answer(self, request):
        path = request.path.partition("?")[0]
        cors = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "POST"),
            ("Access-Control-Allow-Headers", "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token"),
        ]
        if path == "/healthz":
            return 200 if request.command in ("GET", "HEAD") else 405, [], b""
        of_homeserver = [STABLE] * (self.version >= (0, 10)) + [UNSTABLE] * (self.version >= (0, 7))
        if self.tokens and not self.old and path in [prefix + "get_token" for prefix in of_homeserver]:
            return self.by_homeserver(request)
        paths = ["/sfu/get", "/get_token", "/delegate_delayed_leave"][: 1 if self.old else 3 if self.version >= (0, 6) else 2]
        if path not in paths:
            return 404, [("Content-Type", "text/plain; charset=utf-8")], b"404 page not found\n"
        if request.command == "OPTIONS":
            return 200, cors, b""
        if request.command != "POST":
            return 405, cors, b""
        try:
            body = json.loads(request.body)
        except ValueError:
            return matrix_error(400, "M_NOT_JSON", "Error reading request", cors)
        wanted = "room" if path == "/sfu/get" else "room_id"
        if wanted not in body:
            return matrix_error(400, "M_BAD_JSON", f"The request body is missing `{wanted}`", cors)
        user = self.user(body["openid_token"])
        if user is None:
            return matrix_error(401, "M_UNAUTHORIZED", "The request could not be authorised.", cors)
        if self.tokens and self.version >= (0, 9) and not self.joined(user, body[wanted]):
            return matrix_error(403, "M_FORBIDDEN", "The user is not in the room", cors)
        if not self.room(digest(body[wanted], body.get("slot_id", "m.call#ROOM"))):
            return matrix_error(500, "M_UNKNOWN", "Unable to create room on SFU", cors)
        slot = body.get("slot_id", "m.call#ROOM")
        claims = {"sub": f"{user}:{body.get('device_id')}", "exp": int(time.time()) + 3600,
                  "video": {"roomJoin": True, "room": digest(body[wanted], slot)}}
        answer = {"url": self.url, "jwt": jwt(claims, secret=self.secret)}
        return 200, [*cors, ("Content-Type", "application/json")], json.dumps(answer).encode()

    def by_homeserver(self, request):
        """MSC4195, as an application service: the homeserver says who the user is."""
        if request.headers.get("Authorization") != f"Bearer {self.tokens[1]}":
            return matrix_error(401, "M_UNKNOWN_TOKEN", "Not the hs_token")
        users = request.headers.get_all("X-Matrix-User-Identifier") or []
        if len(users) != 1:
            return matrix_error(400, "M_MISSING_PARAM", "No X-Matrix-User-Identifier")
        body = json.loads(request.body)
        if missing := [name for name in ("url", "room_id", "slot_id", "member_id") if name not in body]:
            return matrix_error(400, "M_MISSING_PARAM", f"Missing {missing}")
        if body["url"] != self.url:
            return matrix_error(400, "M_INVALID_PARAM", "Not an SFU of this server")
        if not self.joined(users[0], body["room_id"]):
            return matrix_error(403, "M_FORBIDDEN", "The user is not in the room")
        if not self.room(digest(body["room_id"], body["slot_id"])):
            return matrix_error(500, "M_UNKNOWN", "Unable to create room on SFU")
        claims = {"sub": digest(users[0], body["member_id"]), "exp": int(time.time()) + 3600, "nbf": int(time.time()),
                  "video": {"roomJoin": True, "room": digest(body["room_id"], body["slot_id"]), "canPublish": True, "canSubscribe": True}}
        return 200, [("Content-Type", "application/json")], json.dumps({"jwt": jwt(claims, secret=self.secret)}).encode()

    def joined(self, user, room):
        """MSC4502, by the as_token."""
        quote = lambda text: urllib.parse.quote(text, safe="")
        url = f"{self.homeserver()}/_matrix/client/unstable/io.element.msc4502/rooms/{quote(room)}/is_joined?mxid={quote(user)}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.tokens[0]}"})
        try:
            return json.load(urllib.request.urlopen(request, timeout=10))["joined"]
        except OSError:
            return False

    def user(self, token):
        if not self.reaches:
            return None
        url = f"{self.homeserver()}/_matrix/federation/v1/openid/userinfo?access_token={token['access_token']}"
        try:
            return json.load(urllib.request.urlopen(url, timeout=10))["sub"]
        except OSError:
            return None

    def room(self, name):
        claims = {"exp": int(time.time()) + 60, "video": {"roomCreate": True}}
        headers = {"Authorization": f"Bearer {jwt(claims)}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.livekit()}/twirp/livekit.RoomService/CreateRoom", json.dumps({"name": name}).encode(), headers)
        try:
            return urllib.request.urlopen(request, timeout=10).status == 200
        except OSError:
            return False


class Web(Service):
    """Somebody else's server: `pages` by path, each (status, headers, text); all else is its web site."""

    def __init__(self, pages=None, **keywords):
        self.pages = pages or {}
        super().__init__(**keywords)

    def answer(self, request):
        if request.path in self.pages:
            status, headers, text = self.pages[request.path]
            if request.command == "OPTIONS":
                return 204, [header for header in headers if header[0].startswith("Access")], b""
            return status, headers, text.encode()
        return 200, [("Content-Type", "text/html")], b"<!doctype html><title>my site</title>"


class Meddler(Service):
    """A proxy that makes paths prettier before it passes them on, as some do. `version`: what the homeserver behind it then says
    that it is, with paths left alone."""

    version = None

    def __init__(self, port, **keywords):
        self.behind = port
        super().__init__(**keywords)

    def answer(self, request):
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        path, question, query = request.path.partition("?")
        if self.version and path == "/_matrix/federation/v1/version":
            return 200, [("Content-Type", "application/json")], json.dumps({"server": {"name": "Synapse", "version": self.version}}).encode()
        path = path if self.version else urllib.parse.quote(urllib.parse.unquote(path).replace("//", "/").replace("/./", "/"))
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        connection.request(request.command, path + question + query, request.body or None, headers)
        answer = connection.getresponse()
        body = answer.read()
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "content-length", "connection")]
        connection.close()
        return answer.status, kept, body


class NameServer:
    """Answers with SRV records, and with "no such name" where it has none."""

    def __init__(self, records):
        self.records = records
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, client = self.socket.recvfrom(512)
            except OSError:
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            target, port = self.records.get(".".join(labels), (None, None))
            head = query[:2] + struct.pack(">HHHHH", 0x8180 if target else 0x8183, 1, 1 if target else 0, 0, 0)
            answer = head + query[12 : at + 5]
            if target:
                name = b"".join(bytes([len(label)]) + label.encode() for label in target.split(".")) + b"\0"
                data = struct.pack(">HHH", 10, 5, port) + name
                answer += b"\xc0\x0c" + struct.pack(">HHIH", 33, 1, 60, len(data)) + data
            self.socket.sendto(answer, client)

    def stop(self):
        self.socket.close()


class Authority:
    """A CA of the tests."""

    def __init__(self, folder, name="a CA of the tests"):
        from cryptography.hazmat.primitives.asymmetric import ec

        self.folder, self.name = folder, name
        folder.mkdir(exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key.public_key(), None, None)
        self.root = folder / "ca.pem"
        self.root.write_bytes(self._pem(self.certificate))

    @staticmethod
    def _pem(certificate):
        from cryptography.hazmat.primitives.serialization import Encoding

        return certificate.public_bytes(Encoding.PEM)

    def _sign(self, name, public, hosts, days):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import NameOID

        named = lambda name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(timezone.utc)
        ends = now + timedelta(days=days if days is not None else 365)
        builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(self.name))
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(min(now, ends) - timedelta(days=10)).not_valid_after(ends)
        builder = builder.add_extension(x509.BasicConstraints(hosts is None, None), critical=True)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *hosts, days=90):
        """Files with a certificate and its key."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(hosts[0], key.public_key(), hosts, days)
        name = hashlib.sha256(certificate.signature).hexdigest()[:12]
        cert, secret = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(self._pem(certificate))
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert, secret

    def context(self, *hosts, days=90):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(*hosts, days=days))
        return context


def closed_port():
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
