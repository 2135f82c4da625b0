"""What a restart meets: the clients of a homeserver, and a service behind the edge, on loopback.

Two hundred long polls over both protocols, fifty WebSockets that echo once a second, two hundred idle connections of which half
never read, twenty requests a second of 50 ms, an upload and a download of 10 MiB at 2 MiB/s, and a new connection every 20 ms.
As a program: `restart_load.py` is the service (and prints its port), `restart_load.py PORT ROOT SECONDS` the load on its own."""

import asyncio
import contextlib
import ssl
import sys
import time

import hpack

HOST = "a.example.org"
POLL_SECONDS = 30
BODY, RATE, PIECE = 10 << 20, 2 << 20, 64 << 10
CLOSE_1001 = bytes([0x88, 2, 0x03, 0xE9])


DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6


def frame(kind, flags, stream, payload=b""):
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


# The service


async def serve(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path.startswith(b"/ws"):
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                await echo(reader, writer)
                break
            if path.startswith(b"/up"):
                await reader.readexactly(BODY)
            if path.startswith(b"/poll"):
                await asyncio.sleep(POLL_SECONDS)
            if path.startswith(b"/small"):
                await asyncio.sleep(0.05)
            if path.startswith(b"/down"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY)
                for _ in range(BODY // PIECE):
                    writer.write(bytes(PIECE))
                    await writer.drain()
                    await asyncio.sleep(PIECE / RATE)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
            await writer.drain()
    writer.close()


async def read_frame(reader):
    """One short frame of a WebSocket: its first byte, and its payload as it was before the mask."""
    first, second = await reader.readexactly(2)
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    payload = await reader.readexactly(second & 0x7F)
    return first, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


async def echo(reader, writer):
    while True:
        first, payload = await read_frame(reader)
        writer.write(bytes([first, len(payload)]) + payload)
        await writer.drain()
        if first & 0x0F == 8:
            return


async def service():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The clients


class Load:
    """All of them. What they have seen is in lists of (time, what)."""

    def __init__(self, port, root, **counts):
        self.port, self.counts = port, {"polls": 200, "sockets": 50, "idle": 200, "small": 20, "fresh": 50, **counts}
        self.context = ssl.create_default_context(cafile=str(root))
        self.context.set_alpn_protocols(["http/1.1"])
        self.context_h2 = ssl.create_default_context(cafile=str(root))
        self.context_h2.set_alpn_protocols(["h2"])
        self.tasks, self.kept = set(), []
        # Instants of answers and of failures, by kind of client.
        self.fresh, self.small, self.refused, self.faults = [], [], [], []
        self.polling, self.open, self.told, self.back, self.unanswered = 0, 0, [], [], []
        self.is_up = asyncio.Event()
        self.is_up.set()

    def start(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def connect(self, context=None):
        return await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", self.port, ssl=context or self.context, server_hostname=HOST, limit=1 << 20), 10)

    async def reconnect(self, context=None):
        """A connection as soon as the port is open: one try, which has to succeed."""
        await self.is_up.wait()
        while True:
            try:
                return await self.connect(context)
            except ConnectionRefusedError:
                # Between the end of the old process and what the test knows of it.
                self.refused.append(time.monotonic())
                await asyncio.sleep(0.02)

    async def run(self):
        half = self.counts["polls"] // 2
        for _ in range(half):
            self.start(self.poll())
        for at in range(0, half, 25):
            self.start(self.poll_h2(min(25, half - at)))
        for _ in range(self.counts["sockets"]):
            self.start(self.websocket())
        for at in range(self.counts["idle"]):
            self.start(self.idle(at))
        self.start(self.every(1 / self.counts["small"], self.short))
        self.start(self.every(1 / self.counts["fresh"], self.visit))

    async def stop(self):
        # Again where `wait_for` has lost a cancellation to an answer that came at the same moment.
        while tasks := list(self.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        for writer in self.kept:
            writer.transport.abort()

    async def every(self, seconds, work):
        due = time.monotonic()
        while True:
            self.start(work())
            due += seconds
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def visit(self):
        """A new connection, as far as its handshake."""
        began = time.monotonic()
        try:
            _, writer = await self.connect()
            self.fresh.append(began)
            writer.close()
        except ConnectionRefusedError:
            self.refused.append(began)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self.faults.append((began, "fresh", repr(error)))

    async def short(self):
        began = time.monotonic()
        try:
            reader, writer = await self.connect()
        except ConnectionRefusedError:
            return
        except (OSError, ssl.SSLError, TimeoutError) as error:
            return self.faults.append((began, "small", repr(error)))
        try:
            writer.write(f"GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            self.small.append(began)
            if b" 200 " not in head.split(b"\r\n")[0]:
                self.faults.append((began, "small", head))
        except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.faults.append((began, "small", repr(error)))
        finally:
            writer.close()

    async def poll(self):
        while True:
            reader, writer = await self.reconnect()
            writer.write(f"GET /poll HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            self.polling += 1
            began = time.monotonic()
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in head.split(b"\r\n")[0]:
                    self.faults.append((time.monotonic(), "poll", head))
            except asyncio.IncompleteReadError as error:
                # The end of the connection before a byte of an answer: to be repeated.
                self.unanswered.append((began, time.monotonic(), "end"))
                if error.partial:
                    self.faults.append((time.monotonic(), "poll", error.partial))
            except OSError as error:
                self.unanswered.append((began, time.monotonic(), repr(error)))
            self.polling -= 1
            writer.transport.abort()

    async def poll_h2(self, streams):
        """Frame by frame: the h2 library takes nothing more after a GOAWAY, and polls go on behind one."""
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/poll")]
        while True:
            reader, writer = await self.reconnect(self.context_h2)
            encoder, decoder = hpack.Encoder(), hpack.Decoder()
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
            for at in range(streams):
                # END_STREAM and END_HEADERS.
                writer.write(frame(HEADERS, 5, 1 + 2 * at, encoder.encode(fields)))
            self.polling += streams
            began, ended = time.monotonic(), 0
            try:
                while ended < streams:
                    top = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(top[:3], "big"))
                    kind, flags = top[3], top[4]
                    if kind == SETTINGS and not flags & 1:
                        writer.write(frame(SETTINGS, 1, 0))
                    if kind == PING and not flags & 1:
                        writer.write(frame(PING, 1, 0, payload))
                    if kind == HEADERS and dict(decoder.decode(payload))[":status"] != "200":
                        self.faults.append((time.monotonic(), "poll", payload))
                    if kind == RST_STREAM:
                        self.unanswered.append((began, time.monotonic(), "reset"))
                    ended += kind == RST_STREAM or kind in (DATA, HEADERS) and flags & 1
            except (OSError, asyncio.IncompleteReadError) as error:
                self.unanswered.append((began, time.monotonic(), repr(error)))
            self.polling -= streams
            writer.transport.abort()

    async def websocket(self):
        while True:
            reader, writer = await self.reconnect()
            writer.write(f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                         "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 101 " not in head.split(b"\r\n")[0]:
                    self.faults.append((time.monotonic(), "websocket", head))
                    continue
                self.open += 1
                self.back.append(time.monotonic())
                try:
                    while True:
                        writer.write(b"\x81\x84\0\0\0\0ping")
                        first, payload = await asyncio.wait_for(read_frame(reader), 5)
                        if first & 0x0F == 8:
                            if payload[:2] == b"\x03\xe9":
                                self.told.append(time.monotonic())
                            writer.write(b"\x88\x82\0\0\0\0\x03\xe9")
                            break
                        await self.pause(reader)
                finally:
                    self.open -= 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.faults.append((time.monotonic(), "websocket", repr(error)))
            finally:
                writer.transport.abort()

    @staticmethod
    async def pause(reader):
        """A second, or until something comes: what a client that listens does."""
        until = time.monotonic() + 1
        while time.monotonic() < until and not reader._buffer and not reader.at_eof():
            await asyncio.sleep(0.02)

    async def idle(self, at):
        """One that stays connected: with a request or without, over either protocol; every other one reads nothing."""
        while True:
            reader, writer = await self.reconnect(self.context_h2 if at % 4 < 2 else None)
            if at % 4 < 2:
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            self.kept.append(writer)
            if at % 2:
                writer.transport.pause_reading()
                while self.is_up.is_set():
                    await asyncio.sleep(0.1)
                # It cannot know of the restart: another one takes its place, sooner or later.
                await self.is_up.wait()
                await asyncio.sleep(4 * at / self.counts["idle"])
                self.kept.remove(writer)
                writer.transport.abort()
                continue
            while await reader.read(65536):
                pass
            self.kept.remove(writer)
            writer.transport.abort()
            # Nobody is in a hurry who has nothing to ask.
            await self.is_up.wait()
            await asyncio.sleep(4 * at / self.counts["idle"])

    async def upload(self):
        """Whether it got its answer."""
        reader, writer = await self.connect()
        writer.write(f"POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {BODY}\r\n\r\n".encode())
        for _ in range(BODY // PIECE):
            writer.write(bytes(PIECE))
            await writer.drain()
            await asyncio.sleep(PIECE / RATE)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        return b" 200 " in head.split(b"\r\n")[0]

    async def download(self):
        """Whether it was whole."""
        reader, writer = await self.connect()
        writer.write(f"GET /down HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(BODY)
        writer.close()
        return b" 200 " in head.split(b"\r\n")[0] and len(body) == BODY

    async def settled(self, seconds=30):
        """Waits until every poll and every WebSocket is where it belongs."""
        until = time.monotonic() + seconds
        while self.polling < self.counts["polls"] // 2 * 2 or self.open < self.counts["sockets"]:
            assert time.monotonic() < until, (self.polling, self.open, self.faults[-5:])
            await asyncio.sleep(0.02)


async def main(port, root, seconds):
    load = Load(port, root)
    await load.run()
    await load.settled()
    await asyncio.sleep(seconds)
    await load.stop()
    print(len(load.fresh), "connections,", len(load.small), "requests,", load.faults[:5])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])) if len(sys.argv) > 1 else service())
