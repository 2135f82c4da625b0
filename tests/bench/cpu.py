#!/usr/bin/env python3
"""CPU of a server per unit of work, whatever the load client is.

    cpu.py PID -- wrk -t1 -c64 -d5s --latency https://localhost:8443/x
    cpu.py PID -- h2load -t1 -c16 -m32 -D5 https://localhost:8443/x

Counts user and system time of the process and its children (/proc/PID/task/*/schedstat, nanoseconds) while the client
runs, divides it by the requests that wrk or h2load report, and prints microseconds an operation. The server should be
alone on its CPU (taskset -c 0), the client and the upstream on another (taskset -c 1)."""
import os
import re
import subprocess
import sys


def family(pid):
    """The process and all that descend from it."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # It has ended since.
        children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def nanoseconds(pids):
    """Time on a CPU, of every thread that lives."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as stat:
                total += int(stat.read().split()[0])
    return total


def main():
    pid, separator, *load = sys.argv[1:]
    if separator != "--" or not load:
        sys.exit(__doc__)
    pids = family(int(pid))
    before = nanoseconds(pids)
    output = subprocess.run(load, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    used = nanoseconds(pids) - before
    done = re.search(r"(\d+) requests in|(\d+) succeeded", output)
    if not done:
        sys.exit(f"the client says no number of requests:\n{output}")
    operations = int(done[1] or done[2])
    print(output)
    print(f"{used / 1000 / operations:.1f} µs of CPU an operation ({operations} operations, {used / 1e9:.2f} s)")


if __name__ == "__main__":
    main()
