"""The call services behind the edge, in both layouts, with a real WebSocket library at both ends."""

import asyncio
import ssl

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def layouts():
    return [
        ("edge", "matrixrtc.example.org", "", "jwt.matrixrtc.example.org", ""),
        ("one_host", "matrix.example.org", "/livekit/sfu", "matrix.example.org", "/livekit/jwt"),
    ]


@pytest.mark.parametrize("name, sfu, sfu_prefix, jwt, jwt_prefix", layouts())
def test_both_layouts_lead_to_both_services(request, calls, name, sfu, sfu_prefix, jwt, jwt_prefix):
    edge = request.getfixturevalue(name)
    context = ssl.create_default_context(cafile=str(edge.root))
    with httpx.Client(verify=context) as client:
        assert client.get(f"{edge.url(sfu)}{sfu_prefix or '/'}").text == "OK"
        assert client.get(f"{edge.url(jwt)}{jwt_prefix}/healthz").status_code == 200
        served = client.get(f"{edge.url('matrix.example.org')}/.well-known/matrix/client").json()
        url = served["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"]
        assert url == f"{edge.url(jwt)}{jwt_prefix}"

    async def talk():
        base = edge.url(sfu).replace("https", "wss") + sfu_prefix
        async with connect(f"{base}/rtc/v1?access_token=x", ssl=context, max_size=2**25) as socket:
            for size in (0, 1, 125, 126, 65_535, 65_536, 4 << 20, 16 << 20):
                message = b"x" * size
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{base}/rtc/v1", ssl=context)
        assert refused.value.response.status_code == 401

    asyncio.run(talk())


def test_five_hundred_sockets_at_once(edge):
    context = ssl.create_default_context(cafile=str(edge.root))
    url = edge.url("matrixrtc.example.org").replace("https", "wss") + "/rtc/v1?access_token=x"

    async def one(gate):
        async with gate:
            socket = await connect(url, ssl=context, open_timeout=60)
        return socket

    async def run():
        gate = asyncio.Semaphore(50)
        sockets = await asyncio.gather(*(one(gate) for _ in range(500)))
        await asyncio.gather(*(socket.send(str(n)) for n, socket in enumerate(sockets)))
        for n, socket in enumerate(sockets):
            assert await socket.recv() == str(n)
        await asyncio.gather(*(socket.close() for socket in sockets))

    asyncio.run(run())


def test_fragments_pings_and_close_codes_pass_both_ways(edge):
    context = ssl.create_default_context(cafile=str(edge.root))
    url = edge.url("matrixrtc.example.org").replace("https", "wss") + "/rtc/v1?access_token=x"

    async def run():
        async with connect(url, ssl=context) as socket:
            await socket.send(["in ", "several ", "pieces"])
            assert await socket.recv() == "in several pieces"
            assert await (await socket.ping(b"mine")) >= 0
            await socket.close(4001, "we go")
            assert (socket.close_code, socket.close_reason) == (4001, "we go")
        async with connect(url, ssl=context) as socket:
            await socket.send("close 4002")
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert (socket.close_code, socket.close_reason) == (4002, "they go")

    asyncio.run(run())


def test_an_abort_of_one_side_reaches_the_other(edge, calls):
    context = ssl.create_default_context(cafile=str(edge.root))
    url = edge.url("matrixrtc.example.org").replace("https", "wss") + "/rtc/v1?access_token=x"

    async def run():
        before = calls.open
        socket = await connect(url, ssl=context)
        await socket.send("x")
        assert await socket.recv() == "x" and calls.open == before + 1
        socket.transport.abort()
        for _ in range(100):
            if calls.open == before:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the service still believes in its client")

    asyncio.run(run())


def test_a_websocket_over_http2_by_another_library(edge):
    """RFC 8441 with python's h2 as the client and `websockets` as the server."""
    import socket as sockets

    import h2.config
    import h2.connection
    import h2.events
    import h2.settings

    context = ssl.create_default_context(cafile=str(edge.root))
    context.set_alpn_protocols(["h2"])
    raw = sockets.create_connection(("127.0.0.1", edge.https), timeout=20)
    with context.wrap_socket(raw, server_hostname="matrixrtc.example.org") as tls:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        tls.sendall(connection.data_to_send())
        got, status, announced = b"", None, False

        def pump(done):
            nonlocal got, status, announced
            while not done():
                for event in connection.receive_data(tls.recv(65536)):
                    if isinstance(event, h2.events.RemoteSettingsChanged):
                        code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
                        announced |= code in event.changed_settings and event.changed_settings[code].new_value == 1
                    elif isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[":status"]
                    elif isinstance(event, h2.events.DataReceived):
                        got += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                tls.sendall(connection.data_to_send())

        pump(lambda: announced)
        authority = f"matrixrtc.example.org:{edge.https}"
        connection.send_headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", authority),
                                    (":path", "/rtc/v1?access_token=x"), ("sec-websocket-version", "13")])
        tls.sendall(connection.data_to_send())
        pump(lambda: status)
        assert status == "200"
        connection.send_data(1, bytes([0x81, 0x85, 0, 0, 0, 0]) + b"hello")
        tls.sendall(connection.data_to_send())
        pump(lambda: len(got) >= 7)
        assert got == bytes([0x81, 5]) + b"hello"
