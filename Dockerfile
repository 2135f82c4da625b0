# A small image that runs as nobody, for the platform of whoever builds it (amd64, arm64): docker build -t vestibule .
#
# The same source, base images and SOURCE_DATE_EPOCH give the same program; a release is built twice and compared. What is in it:
# /usr/share/doc/vestibule/Cargo.lock; a release has it as CycloneDX beside its binaries.
ARG RUST=rust:1.95-slim-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST} AS build
WORKDIR /src
# Before the dependencies: those with C in them are built again when it changes.
ARG SOURCE_DATE_EPOCH=0
# Dependencies first, so that a change of ours does not build them again: every target that Cargo.toml names, and nothing in it.
COPY Cargo.toml Cargo.lock ./
RUN sed -n 's/^path = "\(.*\)"/\1/p' Cargo.toml | while read -r target; do mkdir -p "$(dirname "$target")" && touch "$target"; done \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --locked --release && rm -rf src
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --locked --release \
    && mkdir -p /out/var/lib/vestibule /out/etc/vestibule \
    && install -D -m 755 target/release/vestibule /out/usr/local/bin/vestibule \
    && install -D -m 644 Cargo.lock /out/usr/share/doc/vestibule/Cargo.lock \
    && find /out -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="vestibule" \
      org.opencontainers.image.description="The TLS reverse proxy of a self-hosted Matrix homeserver with Element Call" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# Owned by the user of the image, so that a new volume is; and that user may not change the program.
COPY --from=build /out/usr /usr
COPY --from=build --chown=65532:65532 /out/var/lib/vestibule /var/lib/vestibule
COPY --from=build --chown=65532:65532 /out/etc/vestibule /etc/vestibule
USER 65532:65532
VOLUME /var/lib/vestibule
EXPOSE 80 443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["/usr/local/bin/vestibule", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/vestibule"]
CMD ["run"]
