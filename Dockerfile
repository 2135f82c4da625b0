# syntax=docker/dockerfile:1
# A small image that runs as nobody: docker build -t vestibule .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ cmake make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Dependencies first, so that a change of ours does not build them again.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/main.rs tests/tidy.rs \
    && cargo build --locked --release && rm -rf src
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --locked --release && mkdir -p /out/var/lib/vestibule /out/etc/vestibule

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/vestibule /vestibule
# Owned by the user of the image, so that a new volume is.
COPY --from=build --chown=nonroot:nonroot /out/ /
USER nonroot
VOLUME /var/lib/vestibule
EXPOSE 80 443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["/vestibule", "healthcheck"]
ENTRYPOINT ["/vestibule"]
CMD ["run"]
