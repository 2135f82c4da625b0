#!/usr/bin/env bash
# Makes sure that the base images of the Dockerfiles are there: pulled where they can be, else made under the same names from
# Debian's packages, from the toolchain of this machine, and from the stand-ins of this folder.
#
#   base-images.sh               those of the Dockerfile
#   base-images.sh appliance     those of config/appliance/Dockerfile as well
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

name() { sed -n "s/^ARG $1=//p" Dockerfile config/appliance/Dockerfile; }
there() { docker image inspect "$1" >/dev/null 2>&1 || timeout 120 docker pull -q "$1" >/dev/null 2>&1; }
# import FOLDER NAME CHANGE: the folder as an image.
import() { tar -C "$1" -c . | docker import -c "$3" - "$2" >/dev/null; }
system() {
    [ ! -e "$work/system" ] || return 0
    debootstrap --variant=minbase --include=ca-certificates bookworm "$work/system" >/dev/null
    # Machines behind a proxy that looks into TLS trust its CA.
    cp /etc/ssl/certs/ca-certificates.crt "$work/system/etc/ssl/certs/ca-certificates.crt"
}

debian=$(name DEBIAN)
if [ "${1:-}" = appliance ] && ! there "$debian"; then
    system
    import "$work/system" "$debian" 'CMD ["bash"]'
fi

rust=$(name RUST)
if ! there "$rust"; then
    system
    DEBIAN_FRONTEND=noninteractive chroot "$work/system" apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null
    mkdir -p "$work/system/usr/local/rust"
    tar -C "$(rustc --print sysroot)" --exclude=share --exclude='*/lib/rustlib/src' -c bin lib | tar -C "$work/system/usr/local/rust" -x
    import "$work/system" "$rust" 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
fi
rm -rf "$work/system"

base=$(name BASE)
if ! there "$base"; then
    mkdir -p "$work/packages" "$work/base"
    chmod 777 "$work/packages"
    (cd "$work/packages" && apt-get download -qq base-files libc6 libgcc-s1 gcc-12-base netbase tzdata >/dev/null)
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/base"
    done
    mkdir -p "$work/base/etc/ssl/certs" "$work/base/home/nonroot" "$work/base/tmp"
    chmod 1777 "$work/base/tmp"
    cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' > "$work/base/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' > "$work/base/etc/group"
    import "$work/base" "$base" 'USER 65532'
fi

# LiveKit and lk-jwt-service are programs of Go that no package of Debian, PyPI or npm has: where their images cannot be
# pulled, small programs that answer as they do take their names. A test that runs on these says so.
if [ "${1:-}" = appliance ]; then
    for program in LIVEKIT:livekit-server LK_JWT:lk-jwt-service; do
        image=$(name "${program%%:*}")
        there "$image" && continue
        mkdir "$work/${program#*:}"
        install -m 755 "tests/real/stand-ins/${program#*:}" "$work/${program#*:}/"
        import "$work/${program#*:}" "$image" 'LABEL stand-in=true'
    done
fi
