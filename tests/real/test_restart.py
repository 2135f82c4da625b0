"""A restart under the load of a homeserver, round after round: `restart_load.py` has the load.

`RESTART_ROUNDS` is the number of rounds, 20 unless it is set. On two cores nothing else may run beside it."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import BINARY, ROOT, Edge
from restart_load import HOST, Load

ROUNDS = int(os.environ.get("RESTART_ROUNDS", "20"))
SITES = '[sites."{host}"]\nupstream = "http://127.0.0.1:{port}"\n'

# The build that users have, where there is one: it shares two cores with its clients, which all come back at once.
RELEASE = ROOT / "target" / "release" / "vestibule"
BUILD = RELEASE if RELEASE.exists() else BINARY

# Beyond the longest upload: three seconds for polls, half a second for the end.
LONGEST = 3.5


@pytest.fixture(scope="module")
def service():
    process = subprocess.Popen([sys.executable, pathlib.Path(__file__).with_name("restart_load.py")], stdout=subprocess.PIPE, text=True)
    yield int(process.stdout.readline())
    process.kill()
    process.wait()


async def restarted(load, edge, start):
    """One round: SIGTERM, the end, the start. The new edge, and when each of that was."""
    transfers = [asyncio.create_task(load.upload()), asyncio.create_task(load.download())]
    await asyncio.sleep(2)
    load.is_up.clear()
    began = time.monotonic()
    edge.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(edge.process.wait, 20) == 0, edge.log()[-3000:]
    ended = time.monotonic()
    new = await asyncio.to_thread(start)
    up = time.monotonic()
    load.is_up.set()
    assert all(await asyncio.gather(*transfers)), "uploads and downloads complete"
    return new, began, ended, up


async def rounds(load, edge, start, held):
    gaps, ends = [], []
    await load.run()
    try:
        for number in range(ROUNDS):
            await load.settled()
            load.told.clear(), load.unanswered.clear(), load.refused.clear(), load.back.clear(), load.fresh.clear()
            edge, began, ended, up = await restarted(load, edge, start)
            await load.settled(10)
            settled = time.monotonic()
            await asyncio.sleep(1)
            ends.append(ended - began)
            gaps.append(max(load.refused) - min(load.refused) + 0.02 if load.refused else 0)
            print(f"round {number + 1}: end {ended - began:.2f} s, start {up - ended:.2f} s, refused {gaps[-1]:.2f} s, "
                  f"all back {settled - up:.2f} s", flush=True)
            assert not load.faults, load.faults[:10]
            assert len(load.told) >= load.counts["sockets"], f"{len(load.told)} WebSockets were told 1001"
            assert max(load.back) - up < 1.5, "every WebSocket is back"
            polls = [end for _, end, _ in load.unanswered if end > up]
            assert not polls, f"every poll is back on its first try: {load.unanswered[-5:]}"
            assert ended - began < 5.2 - 2 + LONGEST, "no longer than the longest upload and that"
            assert gaps[-1] <= 0.5 and not (held and load.refused), gaps
    finally:
        await load.stop()
    return edge


@pytest.mark.parametrize("held", [False, True], ids=["ports of its own", "sockets that systemd holds"])
def test_a_restart_is_not_noticed(tmp_path, service, held):
    sites = SITES.format(host=HOST, port=service)
    with contextlib.ExitStack() as stack:
        more = {"binary": BUILD}
        if held:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512)) for _ in range(2)]
            fds = " ".join(f"{3 + index}<&{one.fileno()}" for index, one in enumerate(sockets))
            within = ["bash", "-c", f'exec {fds}; export LISTEN_FDS=2 LISTEN_PID=$$; exec "$@"', "bash"]
            more |= {"ports": [one.getsockname()[1] for one in sockets], "within": within, "pass_fds": [one.fileno() for one in sockets]}
        edge = Edge(tmp_path, sites, **more)
        more["ports"] = (edge.http, edge.https)
        load = Load(edge.https, edge.root)
        edge = asyncio.run(rounds(load, edge, lambda: Edge(tmp_path, sites, **more), held))
        assert edge.stop() == 0


def test_a_start_with_a_certificate_in_storage_answers_at_once(tmp_path, service):
    """The release build does it in less than 100 ms; the one that tests run is not optimized."""
    edge = Edge(tmp_path, SITES.format(host=HOST, port=service))
    assert edge.stop() == 0
    times = []
    for _ in range(5):
        began = time.monotonic()
        process = subprocess.Popen([BUILD, "run", "--config", tmp_path / "vestibule.toml"], stderr=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", edge.https)):
                break
            time.sleep(0.001)
        times.append(time.monotonic() - began)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    print(f"listening after {min(times) * 1000:.0f} ms ({BUILD.parent.name})")
    assert min(times) < (0.1 if BUILD is RELEASE else 0.5), times
