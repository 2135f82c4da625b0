#!/usr/bin/env python3
"""Turns the rows of side-by-side runs into the table of README.md: ours, the best peer, their ratio, the bar.

    table.py RUN.json…

A row is one measurement: {"case", "edge", "kind": "ours"|"peer", "round", "cpu_ms_per_1k" or "kib_per_conn",
"errors", "n", "base_rss" (KiB), "wire_bytes", "p99" (µs), "util"}. Medians over the rounds; rows with an "error", and
peers that fail one request in a hundred, do not count."""
import json
import statistics
import sys

# Case: the largest ratio to the best peer.
BARS = {
    "h1-tls-small": 0.85, "h2-tls-small": 0.80, "h1-rate-2k": 0.90, "json64k": 0.95, "h2-json64k": 0.95,
    "gzip-json": 0.65, "zstd-json": 0.72, "upload-50m": 0.80, "upload-50m-h2": 0.70, "h1-large": 1.00, "ws-echo": 1.00,
    "handshake": 0.95, "handshake-resume": 1.00, "handshake-mlkem": 1.00, "wellknown": 0.90,
    "ws-idle": 1.00, "longpoll": 1.00, "keepalive-idle": 1.00,
}
# Memory is held against HAProxy alone.
AGAINST_HAPROXY = {"ws-idle", "longpoll", "keepalive-idle"}
# Bytes on the wire that a ratio may not be bought with.
WIRE = {"gzip-json": 16_900}
# Resident at rest, MiB.
AT_REST = 15


def figures(rows):
    """{case: {edge: [rows]}} of what can be compared."""
    found = {}
    for row in rows:
        if "error" not in row and row.get("pin", True) and row["kind"] in ("ours", "peer"):
            found.setdefault(row["case"], {}).setdefault(row["edge"], []).append(row)
    for edges in found.values():
        for edge in [e for e, rows in edges.items() if failing(rows)]:
            del edges[edge]
    return found


def failing(rows):
    return rows[0]["kind"] == "peer" and statistics.median(r["errors"] / max(1, r["n"]) for r in rows) >= 0.01


def median(rows, key=None):
    key = key or ("kib_per_conn" if "kib_per_conn" in rows[0] else "cpu_ms_per_1k")
    return statistics.median(row[key] for row in rows)


def peers(case, found):
    """Every peer and its figure."""
    edges = {edge: median(rows) for edge, rows in found[case].items() if rows[0]["kind"] == "peer"}
    if case in AGAINST_HAPROXY:
        return {edge: figure for edge, figure in edges.items() if edge == "haproxy"}
    return edges


def show(figure):
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}"


def line(case, found):
    ours = next((rows for rows in found[case].values() if rows[0]["kind"] == "ours"), None)
    against = peers(case, found)
    if not ours or not against:
        return f"| {case} | not measured | | | {BARS[case]:.2f} | |"
    best = min(against, key=against.get)
    own = median(ours)
    ratio = own / against[best]
    met = ratio <= BARS[case] + 0.005
    note = ""
    if case in WIRE:
        wire = ours[0]["wire_bytes"]
        met, note = met and wire <= WIRE[case], f", {wire:,} B"
    unit = " KiB" if case in AGAINST_HAPROXY else " µs"
    spread = [row["kib_per_conn" if case in AGAINST_HAPROXY else "cpu_ms_per_1k"] for row in ours]
    return (f"| {case} | {show(own)}{unit} ({show(min(spread))}–{show(max(spread))}){note} | {best} {show(against[best])} "
            f"| {ratio:.2f} | {BARS[case]:.2f} | {'yes' if met else '**no**'} |")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    rows = []
    for path in sys.argv[1:]:
        with open(path) as file:
            rows += json.load(file)["rows"]
    found = figures(rows)
    print("| case | ours (lowest–highest) | best peer | ratio | bar | met |\n|---|---|---|---|---|---|")
    for case in BARS:
        if case in found:
            print(line(case, found))
    at_rest = [row["base_rss"] / 1024 for row in rows if row["kind"] == "ours" and row.get("base_rss")]
    if at_rest:
        resident = statistics.median(at_rest)
        print(f"| resident at rest | {resident:.1f} MiB | | | {AT_REST} MiB | {'yes' if resident <= AT_REST else '**no**'} |")


if __name__ == "__main__":
    main()
