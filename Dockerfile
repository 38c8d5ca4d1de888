# Dependencies are built in a layer of their own, which stays as long as Cargo.lock does. The final
# image has the program, the C library and the certificates that an OPENIM_API_URL of https needs, no
# shell and no package manager, and a user without rights.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir -p src tests/it && touch src/lib.rs tests/it/main.rs && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked && rm -rf src
COPY src src
COPY migrations migrations
# The stand-ins above are newer than the sources.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/openim-group-mirror /usr/local/bin/openim-group-mirror
# Callbacks that wait for the database: keep it when the container is replaced.
COPY --from=build --chown=65532:65532 /data /var/lib/openim-group-mirror
VOLUME /var/lib/openim-group-mirror
ENV DATA_DIR=/var/lib/openim-group-mirror
EXPOSE 8080
# On all addresses of the container; it refuses that without both keys.
ENV LISTEN_ADDR=0.0.0.0:8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["openim-group-mirror", "healthcheck"]
ENTRYPOINT ["openim-group-mirror"]
