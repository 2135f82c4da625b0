"""How long a graceful stop takes with one kind of client connected: vestibule, Caddy and nginx, on loopback.

    target/tools/venv/bin/python tests/bench/restart.py [VESTIBULE]

Prints a table for `tests/README.md`. Seconds from the signal (SIGTERM; SIGQUIT for nginx) to the end of the process."""

import asyncio
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "real"))

from restart_load import HOST, Load  # noqa: E402
from standins import Authority  # noqa: E402

CASES = {
    "nobody connected": {},
    "an idle HTTP/2 client that does not read": {"suspended": 1},
    "one connection that shook hands and says nothing": {"silent": 1},
    "ten long polls of 30 s over HTTP/1.1": {"polls": 10},
    "ten long polls of 30 s over HTTP/2": {"polls_h2": 10},
    "ten WebSockets": {"sockets": 10},
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def vestibule(binary, folder, port, cert, key, service):
    (folder / "vestibule.toml").write_text(f"""
[listen]
http = []
https = ["127.0.0.1:{port}"]
[storage]
path = "{folder}/state"
[admin]
listen = "off"
[sites."{HOST}"]
upstream = "http://127.0.0.1:{service}"
tls = {{ cert = "{cert}", key = "{key}" }}
""")
    return [binary, "run", "--config", folder / "vestibule.toml"], signal.SIGTERM


def caddy(binary, folder, port, cert, key, service):
    (folder / "Caddyfile").write_text(f"""
{{
    admin off
    auto_https disable_redirects
}}
https://{HOST}:{port} {{
    tls {cert} {key}
    reverse_proxy 127.0.0.1:{service}
}}
""")
    return [binary, "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"], signal.SIGTERM


def nginx(binary, folder, port, cert, key, service):
    (folder / "nginx.conf").write_text(f"""
daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 2;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    map $http_upgrade $upgraded {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{port} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://127.0.0.1:{service}; proxy_http_version 1.1; proxy_read_timeout 300s;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgraded;
        }}
    }}
}}
""")
    return [binary, "-c", folder / "nginx.conf", "-e", folder / "log"], signal.SIGQUIT


async def stopped(process, sign, load, case):
    for _ in range(case.get("polls", 0)):
        load.start(load.poll())
    if streams := case.get("polls_h2"):
        load.start(load.poll_h2(streams))
    for _ in range(case.get("sockets", 0)):
        load.start(load.websocket())
    for at in [1] * case.get("suspended", 0) + [2] * case.get("silent", 0):
        load.start(load.idle(at))
    await asyncio.sleep(2)
    load.is_up.clear()
    began = time.monotonic()
    process.send_signal(sign)
    try:
        await asyncio.to_thread(process.wait, 60)
        took = f"{time.monotonic() - began:.1f}"
    except subprocess.TimeoutExpired:
        process.kill()
        took = "over 60"
    told = len(load.told)
    await load.stop()
    return took + (f" ({told} of {case['sockets']} told 1001)" if "sockets" in case else "")


def main():
    tools = ROOT / "target" / "tools" / "venv" / "bin"
    subjects = [("vestibule", vestibule, sys.argv[1] if len(sys.argv) > 1 else ROOT / "target" / "debug" / "vestibule"),
                ("Caddy", caddy, tools / "caddy"), ("nginx", nginx, shutil.which("nginx"))]
    # What is not on this machine has no column.
    subjects = [subject for subject in subjects if subject[2] and pathlib.Path(subject[2]).exists()]
    service = subprocess.Popen([sys.executable, ROOT / "tests" / "real" / "restart_load.py"], stdout=subprocess.PIPE, text=True)
    behind = int(service.stdout.readline())
    print("| at the moment of the signal | " + " | ".join(name for name, _, _ in subjects) + " |")
    print("|---|" + "---|" * len(subjects))
    try:
        for title, case in CASES.items():
            cells = []
            for _, configure, binary in subjects:
                with tempfile.TemporaryDirectory() as name:
                    folder, port = pathlib.Path(name), free_port()
                    folder.chmod(0o755)
                    authority = Authority(folder / "ca")
                    cert, key = authority.issue(HOST)
                    command, sign = configure(binary, folder, port, cert, key, behind)
                    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    while True:
                        try:
                            socket.create_connection(("127.0.0.1", port)).close()
                            break
                        except OSError:
                            assert process.poll() is None, command
                            time.sleep(0.05)
                    cells.append(asyncio.run(stopped(process, sign, Load(port, authority.root), case)))
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    finally:
        service.kill()


if __name__ == "__main__":
    main()
