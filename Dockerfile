# A small image that runs as nobody, for the platform of whoever builds it (amd64, arm64): docker build -t vestibule .
#
# The same source, toolchain and SOURCE_DATE_EPOCH give the same program. What is in it: /usr/share/doc/vestibule/Cargo.lock.
ARG RUST=rust:1.95-slim-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST} AS build
WORKDIR /src
# Dependencies first, so that a change of ours does not build them again.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/main.rs tests/tidy.rs \
    && cargo build --locked --release && rm -rf src
COPY README.md ./
COPY config config
COPY src src
ARG SOURCE_DATE_EPOCH=0
RUN touch src/main.rs src/lib.rs && cargo build --locked --release \
    && mkdir -p /out/var/lib/vestibule /out/etc/vestibule /out/usr/share/doc/vestibule \
    && cp Cargo.lock /out/usr/share/doc/vestibule/ \
    && install -D target/release/vestibule /out/usr/local/bin/vestibule

FROM ${BASE}
LABEL org.opencontainers.image.title="vestibule" \
      org.opencontainers.image.description="The front door of a self-hosted Matrix homeserver with Element Call" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
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
