#!/usr/bin/env bash
# Makes sure that the base images of the Dockerfile are there: pulled where they can be, else made from Debian's packages and
# from the toolchain of this machine under the same names.
#
#   base-images.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

name() { sed -n "s/^ARG $1=//p" Dockerfile; }
there() { docker image inspect "$1" >/dev/null 2>&1 || timeout 120 docker pull -q "$1" >/dev/null 2>&1; }

rust=$(name RUST)
if ! there "$rust"; then
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$work/rust" >/dev/null
    # Machines behind a proxy that looks into TLS trust its CA.
    cp /etc/ssl/certs/ca-certificates.crt "$work/rust/etc/ssl/certs/ca-certificates.crt"
    mkdir -p "$work/rust/usr/local/rust"
    tar -C "$(rustc --print sysroot)" --exclude=share --exclude='*/lib/rustlib/src' -c bin lib | tar -C "$work/rust/usr/local/rust" -x
    tar -C "$work/rust" -c . | docker import -c 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$rust" >/dev/null
    rm -rf "$work/rust"
fi

base=$(name BASE)
if ! there "$base"; then
    mkdir -p "$work/packages" "$work/base"
    (cd "$work/packages" && apt-get download -qq base-files libc6 libgcc-s1 gcc-12-base netbase tzdata >/dev/null)
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/base"
    done
    mkdir -p "$work/base/etc/ssl/certs" "$work/base/home/nonroot" "$work/base/tmp"
    chmod 1777 "$work/base/tmp"
    cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' > "$work/base/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' > "$work/base/etc/group"
    tar -C "$work/base" -c . | docker import -c 'USER 65532' - "$base" >/dev/null
fi
