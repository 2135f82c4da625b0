"""RFC 9113 and RFC 7541 section by section, as h2spec asks (its generic, http2 and hpack parts), and some that it does not:
raw frames go in over TLS, and what comes back is what the RFC allows."""

import re
import socket
import ssl
import struct
import threading

import pytest
from hpack import Decoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from conftest import Edge

HOST = "frames.example.org"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY, ACK = 1, 4, 8, 0x20, 1
(NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION,
 CONNECT, CALM) = range(12)
BODY = 400


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value, bits, first=0):
    """RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value % 128 | 128)
        value //= 128
    return bytes([*out, value])


def string(text, huffman=False):
    text = text.encode() if isinstance(text, str) else text
    if huffman:
        text = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    return integer(len(text), 7, 0x80 if huffman else 0) + text


def literal(name, value, first=0x00, bits=4, huffman=False):
    """A literal field; `name` is text or an index."""
    head = integer(name, bits, first) if isinstance(name, int) else integer(0, bits, first) + string(name, huffman)
    return head + string(value, huffman)


ADDED = {"first": 0x40, "bits": 6}
NEVER = {"first": 0x10, "bits": 4}


def request(method="GET", path="/", scheme="https", authority=HOST, more=()):
    fields = [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority), *more]
    return b"".join(literal(name, value) for name, value in fields if value is not None)


def headers(stream=1, block=None, flags=END_STREAM | END_HEADERS):
    return frame(HEADERS, flags, stream, request() if block is None else block)


def get(stream=1, more=()):
    return headers(stream, request(more=more))


def post(stream=1, more=(), path="/"):
    return headers(stream, request("POST", path, more=more), END_HEADERS)


def data(payload=b"hello", stream=1, flags=END_STREAM):
    return frame(DATA, flags, stream, payload)


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def rst(stream=1, code=CANCEL):
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def update(stream, by):
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", by))


def priority(stream, on=0, weight=15, exclusive=False):
    return frame(PRIORITY, stream=stream, payload=struct.pack(">IB", on | (exclusive << 31), weight))


ping = frame(PING, payload=b"h2edge!!")


class Connection:
    """One connection, past its handshake."""

    def __init__(self, edge, preface=True):
        context = ssl.create_default_context(cafile=str(edge.root))
        context.set_alpn_protocols(["h2"])
        self.io = context.wrap_socket(socket.create_connection(("127.0.0.1", edge.https), 15), server_hostname=HOST)
        self.io.settimeout(15)
        self.buffer, self.decoder, self.settings, self.statuses = b"", Decoder(), {}, {}
        if preface:
            self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings())
            kind, _, _, payload = self.frame()
            assert kind == SETTINGS, "the first frame of a server is SETTINGS (section 3.4)"
            self.settings = dict(struct.iter_unpack(">HI", payload))
            self.send(frame(SETTINGS, ACK))

    def send(self, bytes_):
        try:
            self.io.sendall(bytes_)
        except OSError:
            pass  # What it had to say is still to be read.

    def frame(self):
        """The next frame, or None at the end of the connection."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            try:
                more = self.io.recv(65536)
            except TimeoutError:
                raise AssertionError("nothing comes, and the connection stays") from None
            except OSError:
                more = b""
            if not more:
                return None
            self.buffer += more
        length = int.from_bytes(self.buffer[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
        payload, self.buffer = self.buffer[9:9 + length], self.buffer[9 + length:]
        if kind == HEADERS:
            # Every block is decoded, in order: it may change the table.
            self.fields = dict(self.decoder.decode(payload))
            self.statuses[stream] = int(self.fields.get(":status", 0))
        return kind, flags, stream & 0x7FFFFFFF, payload

    def until(self, wanted):
        """Reads frames until one of them is wanted; None at the end."""
        while (found := self.frame()) is not None:
            if wanted(found):
                return found
        return None


# What may come back.


def answered(stream=1, status=200):
    def verify(conn):
        found = conn.until(lambda f: f[0] == GOAWAY or f[0] in (HEADERS, RST_STREAM) and f[2] == stream)
        assert found and found[0] == HEADERS, f"no answer but {found}"
        assert conn.statuses[stream] == status
    return verify


def has_data(conn):
    assert conn.until(lambda f: f[0] in (DATA, GOAWAY, RST_STREAM))[0] == DATA


def pong(conn):
    found = conn.until(lambda f: f[0] == GOAWAY or f[0] == PING and f[1] & ACK)
    assert found and found[0] == PING and found[3] == b"h2edge!!", found


def pong_or_end(conn):
    conn.until(lambda f: f[0] == GOAWAY or f[0] == PING and f[1] & ACK)


def code_of(found):
    return struct.unpack(">I", found[3][:4] if found[0] == RST_STREAM else found[3][4:8])[0]


def is_error(found, *kinds):
    return found[0] in kinds or found[0] == GOAWAY and code_of(found) != NO_ERROR


def connection(*codes):
    """The connection ends (section 5.4.1). Where it says why, it is by one of these codes."""
    def verify(conn):
        found = conn.until(is_error)
        assert not found or code_of(found) in codes, found
        assert conn.until(lambda f: False) is None
    return verify


def stream(*codes):
    """The stream ends by one of these codes, or the connection does (section 5.4.2)."""
    def verify(conn):
        found = conn.until(lambda f: is_error(f, RST_STREAM))
        assert not found or code_of(found) in codes, found
    return verify


def refused(*codes):
    """As `stream`, or an answer of 400 (section 8.1.1 allows it before the reset)."""
    def verify(conn):
        found = conn.until(lambda f: is_error(f, RST_STREAM, HEADERS))
        if found and found[0] == HEADERS:
            assert conn.statuses[found[2]] == 400
        elif found:
            assert code_of(found) in codes, found
    return verify


def acked(conn):
    found = conn.until(lambda f: f[0] == GOAWAY or f[0] == SETTINGS and f[1] & ACK)
    assert found and found[0] == SETTINGS


def ended(stream=1):
    """A step: reads until the answer on this stream is over."""
    return lambda conn: conn.until(lambda f: f[2] == stream and (f[0] == RST_STREAM or f[0] in (DATA, HEADERS) and f[1] & END_STREAM))


def window_of_one(conn):
    """One byte at a time where the window allows one (section 6.9.2)."""
    found = conn.until(lambda f: f[0] == DATA)
    assert found and len(found[3]) == 1, found


def over_the_largest_frame(kind, flags, start=b""):
    def send(conn):
        largest = conn.settings.get(5, 16384)
        conn.send(frame(kind, flags, 1, start + b"\0" * (largest + 1 - len(start))))
    return send


def too_many_streams(conn):
    allowed = conn.settings.get(3)
    assert allowed, "SETTINGS_MAX_CONCURRENT_STREAMS is announced"
    conn.send(b"".join(headers(2 * n + 1, request(path="/hold")) for n in range(allowed + 1)))


BAD_HUFFMAN = {
    "more than seven bits of padding": b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff\xff",
    "padding of zeros": b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
    "the end-of-string symbol": b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xf3\xff\xff\xff\xff",
}
SPLIT = request(), literal("x-one", "1"), literal("x-two", "2")
SELF = struct.pack(">IB", 1, 15)
MOST = 2**31 - 1

CASES = [
    # generic
    ("3.4", "a preface", [ping], pong),
    ("5.1", "PRIORITY on an idle stream", [priority(1), ping], pong),
    ("5.1", "WINDOW_UPDATE on a half-closed stream", [get(), update(1, 1)], has_data),
    ("5.1", "PRIORITY on a half-closed stream", [get(), priority(1)], has_data),
    ("5.1", "RST_STREAM on a half-closed stream", [get(), rst(), ping], pong),
    ("5.1", "PRIORITY on a closed stream", [get(), ended(), priority(1), ping], pong),
    ("6.1", "DATA", [post(), data()], answered()),
    ("6.1", "several DATA", [post(), data(flags=0), data(flags=0), data()], answered()),
    ("6.1", "DATA with padding", [post(), frame(DATA, PADDED | END_STREAM, 1, b"\x06hello" + bytes(6))], answered()),
    ("6.1", "DATA of nothing that ends the stream", [post(), data(b"")], answered()),
    ("6.2", "HEADERS", [get()], answered()),
    ("6.2", "HEADERS with padding", [headers(1, b"\x06" + request() + bytes(6), END_STREAM | END_HEADERS | PADDED)], answered()),
    ("6.2", "HEADERS with a priority", [headers(1, struct.pack(">IB", 0, 255) + request(), END_STREAM | END_HEADERS | HAS_PRIORITY)], answered()),
    ("6.2", "HEADERS with padding and a priority", [headers(1, b"\x02" + struct.pack(">IB", 0, 3) + request() + bytes(2), 0x2D)], answered()),
    ("6.3", "PRIORITY of weight 1", [priority(1, weight=0), get()], answered()),
    ("6.3", "PRIORITY of weight 256", [priority(1, weight=255), get()], answered()),
    ("6.3", "PRIORITY on another stream", [priority(1, on=3), get()], answered()),
    ("6.3", "PRIORITY that is exclusive", [priority(1, on=3, exclusive=True), get()], answered()),
    ("6.3", "PRIORITY on a higher idle stream, then a lower one is used", [priority(5), get()], answered()),
    ("6.4", "RST_STREAM", [post(), rst(), ping], pong),
    ("6.5", "SETTINGS", [settings((3, 100))], acked),
    ("6.7", "PING", [ping], pong),
    ("6.8", "GOAWAY", [frame(GOAWAY, payload=bytes(8)), ping], pong_or_end),
    ("6.9", "WINDOW_UPDATE of the connection", [update(0, 1), ping], pong),
    ("6.9", "WINDOW_UPDATE of a stream", [post(), update(1, 1), data()], answered()),
    ("6.10", "CONTINUATION", [headers(1, SPLIT[0], END_STREAM), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], answered()),
    ("6.10", "several CONTINUATION", [headers(1, SPLIT[0], END_STREAM), frame(CONTINUATION, 0, 1, SPLIT[1]), frame(CONTINUATION, END_HEADERS, 1, SPLIT[2])], answered()),
    ("6.10", "CONTINUATION cut inside a field", [headers(1, SPLIT[0][:9], END_STREAM), frame(CONTINUATION, END_HEADERS, 1, SPLIT[0][9:])], answered()),
    ("8.1", "GET", [get()], answered()),
    ("8.1", "HEAD", [headers(1, request("HEAD"))], answered()),
    ("8.1", "POST", [post(), data()], answered()),
    ("8.1", "POST with trailers", [post(more=[("trailer", "x-t")]), data(flags=0), headers(1, literal("x-t", "1"))], answered()),
    ("hpack 6.1", "an indexed field", [headers(1, request() + b"\x90")], answered()),
    *[
        (f"hpack 6.2.{n}", f"a literal, {how}, {'indexed' if isinstance(name, int) else 'new'} name{', Huffman' if huffman else ''}",
         [headers(1, request() + literal(name, "value", huffman=huffman, **kind))], answered())
        for n, how, kind in ((1, "added", ADDED), (2, "not added", {}), (3, "never added", NEVER))
        for name in (58, "x-name") for huffman in (False, True)
    ],
    ("hpack 6.3", "an update of the table's size", [headers(1, integer(0, 5, 0x20) + request())], answered()),
    ("hpack 6.3", "two updates of the table's size", [headers(1, integer(0, 5, 0x20) + integer(4096, 5, 0x20) + request())], answered()),
    ("hpack 2.3.2", "a field of the dynamic table", [get(1, ()), headers(3, request() + literal("x-d", "1", **ADDED)), headers(5, request() + b"\xbe")], answered(5)),
    ("hpack 4.4", "a field larger than the table empties it", [headers(1, request() + literal("x-d", "1", **ADDED) + literal("x-large", "x" * 5000, **ADDED) + b"\xbe")], connection(COMPRESSION)),
    # 3
    ("3.4", "a preface that is none", [b"INVALID CONNECTION PREFACE\r\n\r\n"], connection(PROTOCOL)),
    # 4
    ("4.1", "a frame of an unknown type", [frame(0x16, payload=bytes(8)), ping], pong),
    ("4.1", "a frame with an undefined flag", [frame(PING, 0x16, payload=b"h2edge!!")], pong),
    ("4.1", "a frame with the reserved bit", [frame(PING, 0, 1 << 31, b"h2edge!!")], pong),
    ("4.2", "DATA of 2^14 bytes", [post(), data(bytes(16384))], answered()),
    ("4.2", "DATA over SETTINGS_MAX_FRAME_SIZE", [post(), over_the_largest_frame(DATA, END_STREAM)], stream(FRAME_SIZE)),
    ("4.2", "HEADERS over SETTINGS_MAX_FRAME_SIZE", [over_the_largest_frame(HEADERS, END_STREAM | END_HEADERS, request())], connection(FRAME_SIZE)),
    ("4.2", "an unknown frame over SETTINGS_MAX_FRAME_SIZE", [over_the_largest_frame(0x16, 0)], connection(FRAME_SIZE)),
    ("4.3", "a block that cannot be decoded", [headers(1, b"\x40\x01x\xff")], connection(COMPRESSION)),
    ("4.3", "PRIORITY inside a block", [headers(1, SPLIT[0], 0), priority(1), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], connection(PROTOCOL)),
    ("4.3", "HEADERS of another stream inside a block", [headers(1, SPLIT[0], 0), headers(3)], connection(PROTOCOL)),
    # 5
    ("5.1", "idle: DATA", [data()], stream(PROTOCOL, STREAM_CLOSED)),
    ("5.1", "idle: RST_STREAM", [rst()], connection(PROTOCOL)),
    ("5.1", "idle: WINDOW_UPDATE", [update(1, 100)], connection(PROTOCOL)),
    ("5.1", "idle: CONTINUATION", [frame(CONTINUATION, END_HEADERS, 1, request())], connection(PROTOCOL)),
    ("5.1", "half-closed: DATA", [headers(1, request(path="/hold")), data()], stream(STREAM_CLOSED)),
    ("5.1", "half-closed: HEADERS", [headers(1, request(path="/hold")), get()], stream(STREAM_CLOSED, PROTOCOL)),
    ("5.1", "half-closed: CONTINUATION", [headers(1, request(path="/hold")), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], stream(STREAM_CLOSED, PROTOCOL)),
    ("5.1", "closed by RST_STREAM: DATA", [post(), rst(), data()], stream(STREAM_CLOSED)),
    ("5.1", "closed by RST_STREAM: HEADERS", [post(), rst(), get()], stream(STREAM_CLOSED)),
    ("5.1", "closed by RST_STREAM: CONTINUATION", [post(), rst(), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], stream(STREAM_CLOSED, PROTOCOL)),
    ("5.1", "closed: DATA", [get(), ended(), data()], stream(STREAM_CLOSED)),
    ("5.1", "closed: HEADERS", [get(), ended(), get()], stream(STREAM_CLOSED)),
    ("5.1", "closed: CONTINUATION", [get(), ended(), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], stream(STREAM_CLOSED, PROTOCOL)),
    ("5.1.1", "an even stream", [get(2)], connection(PROTOCOL)),
    ("5.1.1", "a stream lower than the last one", [headers(5, request(path="/hold")), get(3)], connection(PROTOCOL, STREAM_CLOSED)),
    ("5.1.2", "more streams than allowed", [too_many_streams], stream(PROTOCOL, REFUSED)),
    ("5.3.1", "HEADERS that depend on themselves", [headers(1, SELF + request(), END_STREAM | END_HEADERS | HAS_PRIORITY)], stream(PROTOCOL)),
    ("5.3.1", "PRIORITY that depends on itself", [priority(1, on=1)], stream(PROTOCOL)),
    ("5.4.1", "PING of a wrong length", [frame(PING, payload=bytes(6))], connection(FRAME_SIZE)),
    ("5.5", "an extension's frame", [frame(0x16, 0, 0, bytes(8)), ping], pong),
    ("5.5", "an extension's frame inside a block", [headers(1, SPLIT[0], 0), frame(0x16, 0, 1, bytes(8)), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], connection(PROTOCOL)),
    # 6
    ("6.1", "DATA on the connection", [data(stream=0)], connection(PROTOCOL)),
    ("6.1", "DATA on a stream that is over", [get(), ended(), data()], stream(STREAM_CLOSED)),
    ("6.1", "DATA with more padding than frame", [post(), frame(DATA, PADDED | END_STREAM, 1, b"\x06hello")], connection(PROTOCOL)),
    ("6.1", "DATA of padding without a length", [post(), frame(DATA, PADDED | END_STREAM, 1)], connection(PROTOCOL, FRAME_SIZE)),
    ("6.2", "HEADERS without END_HEADERS, then PRIORITY", [headers(1, SPLIT[0], 0), priority(1)], connection(PROTOCOL)),
    ("6.2", "HEADERS without END_HEADERS, then HEADERS elsewhere", [headers(1, SPLIT[0], 0), get(3)], connection(PROTOCOL)),
    ("6.2", "HEADERS without END_HEADERS, then DATA", [headers(1, SPLIT[0], 0), data()], connection(PROTOCOL)),
    ("6.2", "HEADERS on the connection", [get(0)], connection(PROTOCOL)),
    ("6.2", "HEADERS with more padding than frame", [headers(1, b"\xff" + request(), END_STREAM | END_HEADERS | PADDED)], stream(PROTOCOL)),
    ("6.2", "HEADERS with a cut priority", [headers(1, b"\0\0", END_STREAM | END_HEADERS | HAS_PRIORITY)], connection(PROTOCOL, FRAME_SIZE)),
    ("6.3", "PRIORITY on the connection", [priority(0)], connection(PROTOCOL)),
    ("6.3", "PRIORITY of a wrong length", [post(), frame(PRIORITY, stream=1, payload=bytes(4))], stream(FRAME_SIZE)),
    ("6.4", "RST_STREAM on the connection", [rst(0)], connection(PROTOCOL)),
    ("6.4", "RST_STREAM on an idle stream", [rst(1)], connection(PROTOCOL)),
    ("6.4", "RST_STREAM of a wrong length", [post(), frame(RST_STREAM, stream=1, payload=bytes(3))], connection(FRAME_SIZE)),
    ("6.5", "SETTINGS with ACK and a payload", [frame(SETTINGS, ACK, 0, bytes(6))], connection(FRAME_SIZE)),
    ("6.5", "SETTINGS on a stream", [frame(SETTINGS, 0, 1, struct.pack(">HI", 3, 100))], connection(PROTOCOL)),
    ("6.5", "SETTINGS of a wrong length", [frame(SETTINGS, payload=bytes(3))], connection(FRAME_SIZE)),
    ("6.5.2", "ENABLE_PUSH of 2", [settings((2, 2))], connection(PROTOCOL)),
    ("6.5.2", "INITIAL_WINDOW_SIZE over 2^31-1", [settings((4, 2**31))], connection(FLOW_CONTROL)),
    ("6.5.2", "MAX_FRAME_SIZE under 2^14", [settings((5, 16383))], connection(PROTOCOL)),
    ("6.5.2", "MAX_FRAME_SIZE over 2^24-1", [settings((5, 2**24))], connection(PROTOCOL)),
    ("6.5.2", "an unknown setting", [settings((0xFF, 1)), ping], pong),
    ("6.5.2", "HEADER_TABLE_SIZE of nothing", [settings((1, 0)), acked, get()], answered()),
    ("6.5.3", "INITIAL_WINDOW_SIZE twice, the last one counts", [settings((4, 100), (4, 1)), acked, get()], window_of_one),
    ("6.5.3", "SETTINGS are acknowledged", [settings((4, 100))], acked),
    ("6.7", "an ACK that nobody waits for is not answered", [frame(PING, ACK, 0, b"invalid!"), ping], pong),
    ("6.7", "PING on a stream", [frame(PING, 0, 1, bytes(8))], connection(PROTOCOL)),
    ("6.7", "PING of a wrong length", [frame(PING, 0, 0, bytes(7))], connection(FRAME_SIZE)),
    ("6.8", "GOAWAY on a stream", [frame(GOAWAY, 0, 1, bytes(8))], connection(PROTOCOL)),
    ("6.8", "GOAWAY of a wrong length", [frame(GOAWAY, 0, 0, bytes(4))], connection(FRAME_SIZE)),
    ("6.9", "WINDOW_UPDATE of nothing", [update(0, 0)], connection(PROTOCOL)),
    ("6.9", "WINDOW_UPDATE of nothing on a stream", [post(), update(1, 0)], stream(PROTOCOL)),
    ("6.9", "WINDOW_UPDATE of a wrong length", [frame(WINDOW_UPDATE, 0, 0, bytes(3))], connection(FRAME_SIZE)),
    ("6.9.1", "a window of one byte", [settings((4, 1)), acked, get()], window_of_one),
    ("6.9.1", "a window over 2^31-1", [update(0, MOST), update(0, MOST)], connection(FLOW_CONTROL)),
    ("6.9.1", "a stream's window over 2^31-1", [post(), update(1, MOST), update(1, MOST)], stream(FLOW_CONTROL)),
    ("6.9.2", "the window opens after HEADERS", [settings((4, 0)), acked, get(), settings((4, 1))], window_of_one),
    ("6.9.2", "a window that becomes negative", [settings((4, 3)), acked, get(), has_data, settings((4, 2)), acked, update(1, 2)], window_of_one),
    ("6.9.2", "INITIAL_WINDOW_SIZE over what a window can be", [settings((4, 2**31))], connection(FLOW_CONTROL)),
    ("6.10", "CONTINUATION, then another frame", [headers(1, SPLIT[0], 0), frame(CONTINUATION, 0, 1, SPLIT[1]), data()], connection(PROTOCOL)),
    ("6.10", "CONTINUATION on the connection", [headers(1, SPLIT[0], 0), frame(CONTINUATION, END_HEADERS, 0, SPLIT[1])], connection(PROTOCOL)),
    ("6.10", "CONTINUATION of another stream", [headers(1, SPLIT[0], 0), frame(CONTINUATION, END_HEADERS, 3, SPLIT[1])], connection(PROTOCOL)),
    ("6.10", "CONTINUATION after END_HEADERS", [headers(1, request("POST", "/hold"), END_HEADERS), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], connection(PROTOCOL)),
    ("6.10", "CONTINUATION after the last CONTINUATION", [headers(1, request("POST", "/hold"), 0), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1]), frame(CONTINUATION, END_HEADERS, 1, SPLIT[2])], connection(PROTOCOL)),
    ("6.10", "CONTINUATION after DATA", [headers(1, SPLIT[0], 0), data(), frame(CONTINUATION, END_HEADERS, 1, SPLIT[1])], connection(PROTOCOL)),
    ("7", "GOAWAY with an unknown code", [frame(GOAWAY, payload=bytes(4) + b"\0\0\0\xff"), ping], pong_or_end),
    ("7", "RST_STREAM with an unknown code", [post(), rst(1, 0xFF), ping], pong),
    # 8
    ("8.1", "a second HEADERS that does not end the stream", [post(), headers(1, literal("x-t", "1"), END_HEADERS)], refused(PROTOCOL)),
    ("8.2.1", "a name in capitals", [get(more=[("X-TEST", "ok")])], refused(PROTOCOL)),
    *[("8.2.2", f"{name}: {value}", [get(more=[(name, value)])], refused(PROTOCOL)) for name, value in (
        ("connection", "keep-alive"), ("keep-alive", "timeout=5"), ("proxy-connection", "x"), ("transfer-encoding", "chunked"),
        ("upgrade", "foo/2"), ("te", "trailers, deflate"))],
    ("8.2.2", "te: trailers", [get(more=[("te", "trailers")])], answered()),
    ("8.2.3", "a cookie in crumbs", [get(more=[("cookie", "a=1"), ("cookie", "b=2")])], answered()),
    ("8.3", "an unknown pseudo-field", [get(more=[(":test", "ok")])], refused(PROTOCOL)),
    ("8.3", "a pseudo-field of answers", [get(more=[(":status", "200")])], refused(PROTOCOL)),
    ("8.3", "a pseudo-field after a field", [headers(1, literal("x-test", "ok") + request())], refused(PROTOCOL)),
    ("8.3.1", "a :path that is no UTF-8", [headers(1, request(path=b"/\xff"))], refused(PROTOCOL)),
    ("8.3.1", "an empty :path", [headers(1, request(path=""))], refused(PROTOCOL)),
    *[("8.3.1", f"no {name}", [headers(1, request(**{name: None}))], refused(PROTOCOL)) for name in ("method", "scheme", "path", "authority")],
    *[("8.3.1", f"two {name}", [get(more=[(name, value)])], refused(PROTOCOL)) for name, value in (
        (":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", HOST))],
    ("8.3.1", "a user in :authority", [headers(1, request(authority=f"me@{HOST}"))], refused(PROTOCOL)),
    ("8.1", "a pseudo-field among the trailers", [post(), data(flags=0), headers(1, literal(":method", "EVIL"))], stream(PROTOCOL)),
    ("8.1", "a field of one hop among the trailers", [post(), data(flags=0), headers(1, literal("connection", "close"))], stream(PROTOCOL)),
    ("8.1.1", "a length that the body does not have", [post(more=[("content-length", "1")]), data()], refused(PROTOCOL)),
    ("8.1.1", "a length that the parts of the body do not have", [post(more=[("content-length", "1")]), data(flags=0), data()], refused(PROTOCOL)),
    ("8.1.1", "a length over the body's", [post(more=[("content-length", "9")]), data()], refused(PROTOCOL)),
    ("8.1.1", "a length and no body", [get(more=[("content-length", "9")])], refused(PROTOCOL)),
    ("8.4", "PUSH_PROMISE of a client", [get(), frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + request())], connection(PROTOCOL)),
    # hpack
    ("hpack 2.3.3", "an index that is not there", [headers(1, request() + integer(70, 7, 0x80))], connection(COMPRESSION)),
    ("hpack 2.3.3", "a name's index that is not there", [headers(1, request() + literal(70, "x", **ADDED))], connection(COMPRESSION)),
    ("hpack 4.2", "an update of the table's size behind fields", [headers(1, request() + integer(0, 5, 0x20))], connection(COMPRESSION)),
    ("hpack 5.1", "an integer without an end", [headers(1, request() + b"\xff" + b"\xff" * 12)], connection(COMPRESSION)),
    *[("hpack 5.2", f"Huffman: {what}", [headers(1, request() + block)], connection(COMPRESSION)) for what, block in BAD_HUFFMAN.items()],
    ("hpack 5.2", "a string longer than the block", [headers(1, request() + b"\x00\x7f\x10x")], connection(COMPRESSION)),
    ("hpack 6.1", "index 0", [headers(1, request() + b"\x80")], connection(COMPRESSION)),
    ("hpack 6.3", "a table larger than allowed", [headers(1, integer(2**20, 5, 0x20) + request())], connection(COMPRESSION)),
]


class Service:
    """Answers every request once it is whole; `/hold` never."""

    def __init__(self):
        self.seen = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        read = b""
        try:
            while more := stream.recv(65536):
                read += more
                head, _, body = read.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                if b"chunked" in head.lower():
                    whole = re.search(rb"(^|\r\n)0\r\n(.*\r\n)*\r\n$", body)
                else:
                    whole = b"\r\n\r\n" in read and len(body) >= int(length[1] if length else 0)
                if whole:
                    self.seen.append(read)
                if whole and b" /hint " in head:
                    stream.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n")
                if whole and b"/hold" not in head:
                    body = b"" if head.startswith(b"HEAD") else b"x" * BODY
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY + body)
                    read = b""
        except OSError:
            pass
        finally:
            stream.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    service = Service()
    edge = Edge(tmp_path_factory.mktemp("frames"), f'[sites."{HOST}"]\nupstream = "http://127.0.0.1:{service.port}"\n')
    edge.service = service
    yield edge
    edge.stop()
    service.listener.close()


@pytest.mark.parametrize("steps, verify", [pytest.param(*case[2:], id=f"{case[0]} {case[1]}") for case in CASES])
def test_every_frame_has_the_answer_of_the_rfc(front, steps, verify):
    conn = Connection(front, preface=callable(steps[0]) or not steps[0].startswith(b"INVALID"))
    for step in steps:
        step(conn) if callable(step) else conn.send(step)
    verify(conn)
    conn.io.close()


def test_hints_pass(front):
    conn = Connection(front)
    conn.send(headers(1, request(path="/hint")))
    hint = conn.until(lambda f: f[0] == HEADERS)
    assert conn.statuses[1] == 103 and not hint[1] & END_STREAM
    assert dict(conn.fields) == {":status": "103", "link": "</a>"}
    answered()(conn)


def test_who_waits_for_a_100_gets_it(front):
    conn = Connection(front)
    conn.send(post(more=[("expect", "100-continue")]))
    first = conn.until(lambda f: f[0] in (HEADERS, RST_STREAM, GOAWAY))
    assert first[0] == HEADERS and conn.statuses[1] == 100 and not first[1] & END_STREAM
    conn.send(data())
    answered()(conn)


def test_nothing_of_it_has_hurt(front):
    conn = Connection(front)
    conn.send(get())
    answered()(conn)
    assert "panicked" not in front.log()
