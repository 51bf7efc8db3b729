# syntax=docker/dockerfile:1

# The image holds both programs. It starts the API and the reconciler in one process
# (`order-service`); `--entrypoint order-reconciler` starts the reconciler alone, and the command `dev`
# the simulator as well.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The two caches keep the dependencies that were fetched and compiled by earlier builds. The
# program's own files are touched, so that they are compiled even if a cached build looks newer.
RUN --mount=type=cache,id=order-service-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=order-service-target,target=/build/target \
    touch src/lib.rs src/main.rs src/bin/*.rs \
    && cargo build --release --locked --bins --features postgres \
    && install -D --target-directory=/out target/release/order-service target/release/order-reconciler

# The same Debian release as above: the programs need its glibc or a newer one, and libgcc.
FROM debian:bookworm-slim
# An upstream with https:// is verified against the system's root certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 order \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin order \
    && install -d -o 10001 -g 10001 -m 0750 /data
COPY --from=build /out/ /usr/local/bin/

# As a number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
# The address of the API, which a simulator alone takes as its own. That of the simulator is for `dev`.
ENV DATABASE_URL=sqlite:/data/orders.db \
    LISTEN_ADDR=0.0.0.0:8080 \
    SIMULATOR_LISTEN_ADDR=0.0.0.0:8000
EXPOSE 8080

# SIGTERM lets requests and starts in flight finish: give it 30 s (`docker stop -t 30`).
STOPSIGNAL SIGTERM
# The check asks the API: a reconciler alone needs `--health-cmd 'order-reconciler health'`, a simulator alone
# `--no-healthcheck`. Podman keeps a health check with `podman build --format docker` alone.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s --retries=3 \
    CMD ["order-service", "health"]
ENTRYPOINT ["order-service"]
