"""The call services behind the edge, in both layouts, with a real WebSocket library at both ends."""

import asyncio
import ssl

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


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
        async with connect(f"{base}/rtc/v1?access_token=x", ssl=context, max_size=2**24) as socket:
            for size in (0, 1, 125, 126, 65_535, 65_536, 4 << 20):
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
