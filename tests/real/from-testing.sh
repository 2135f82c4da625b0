#!/usr/bin/env bash
# Puts the program $3 of Debian's testing suite, from its package $2, into the folder $1. What stable has of it is too old,
# so the package is unpacked beside the system, which stays as it is; it needs nothing but libc.
set -euo pipefail
target=$1 package=$2 program=$3
[ -x "$target/$program" ] && exit 0
mkdir -p "$target"/{lists/partial,cache/archives/partial}
target=$(cd "$target" && pwd)
# The mirror that this system's own main suite comes from.
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
    awk -v suite="$codename" '/^URIs:/ { uri = $2 } /^Suites:/ && $2 == suite { print uri }
        /^deb / { for (i = 2; i < NF; i++) if ($i ~ /^https?:/ && $(i + 1) == suite) print $i }' | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror in apt's sources" >&2; exit 1; }
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s forky main\n' "$mirror" > "$target/sources.list"
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$target/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$target/lists" -o "Dir::Cache=$target/cache" -o APT::Get::List-Cleanup=0 -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$target" && "${apt[@]}" download "$package/forky" && dpkg -x "$package"_*.deb .)
[ -x "$target/$program" ]
