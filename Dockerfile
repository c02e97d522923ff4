# syntax=docker/dockerfile:1

# The image of the service: one program, no shell, not root. .dockerignore lets in only what is copied here.
FROM rust:1.95-bookworm AS build
WORKDIR /onair
COPY Cargo.toml Cargo.lock ./
# A member of the workspace: cargo wants to see it, though it is not built.
COPY load/bench load/bench
COPY lua lua
COPY migrations migrations
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/onair/target \
    cargo build --locked --release --package onair --bin onair \
    && cp target/release/onair /usr/local/bin/onair

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /usr/local/bin/onair /usr/local/bin/onair
# In a container the own address is the only one that others can reach.
ENV ONAIR_SERVER_LISTEN=0.0.0.0:8080
EXPOSE 8080
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/onair", "ready"]
ENTRYPOINT ["/usr/local/bin/onair"]
CMD ["serve"]
