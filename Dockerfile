# Build with dependencies in a layer of their own, run as a user without rights.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir -p src tests/it && touch src/lib.rs tests/it/main.rs && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked && rm -rf src
COPY src src
COPY migrations migrations
# The stand-ins above are newer than the sources.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM debian:bookworm-slim
COPY --from=build /src/target/release/openim-group-mirror /usr/local/bin/
USER nobody
EXPOSE 8080
# On all addresses of the container; it refuses that until ALLOW_ANONYMOUS says so.
ENV LISTEN_ADDR=0.0.0.0:8080
ENTRYPOINT ["openim-group-mirror"]
