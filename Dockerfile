# All images of the platform with the versions of their base images. Compose builds each as a target of this file.
# docs/how-to/deploy.md explains how to pin digests, since tags may move.
FROM python:3.12.13-slim-bookworm AS base
FROM prom/prometheus:v3.13.3 AS prometheus
FROM grafana/grafana:12.4.4 AS grafana
FROM jaegertracing/jaeger:2.19.0 AS jaeger
FROM chrislusf/seaweedfs:4.47 AS objects

# restate-server as an unprivileged user; the official image runs as root. A new volume takes the owner of its mount point,
# so the image needs a data folder that the user may write to.
FROM docker.restate.dev/restatedev/restate:1.7.12 AS restate
RUN install --directory --owner 10001 --group 10001 --mode 0700 /restate-data
COPY deploy/restate/restate.toml /etc/restate/restate.toml
COPY deploy/docker/restate-start /usr/local/bin/restate-start
ENV RESTATE_CONFIG=/etc/restate/restate.toml \
    RESTATE_BASE_DIR=/restate-data \
    RESTATE_LISTEN_MODE=tcp
USER 10001:10001
WORKDIR /restate-data
ENTRYPOINT ["restate-start"]

# PostgreSQL without root, even at the start. The data folder has its owner already, so the entry point needs no capability.
FROM postgres:17.10-bookworm AS postgres
# At a restart, a tmpfs takes the mode of its mount point, so postgres must be able to write to the socket's folder.
RUN install --directory --owner postgres --group postgres --mode 0700 /var/lib/postgresql/perdure \
 && install --directory --owner postgres --group postgres --mode 3777 /var/run/postgresql
COPY --chmod=0644 deploy/postgres/databases.sql /docker-entrypoint-initdb.d/
ENV PGDATA=/var/lib/postgresql/perdure
USER postgres

# One image for every service of the platform; the command picks the service: `serve flights`, `migrate`, `register` …
#
# It contains Python, the locked packages and the two distributions of this workspace, compiled to byte code, in a virtual
# environment owned by root. It contains no pip, compiler, curl, tests or tools. It runs as an unprivileged user and writes
# no files, so its root file system can be read-only.
FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/perdure

# The locked packages come first, so this layer changes only with a lock. `--only-binary` prevents build scripts, which
# would need a compiler.
COPY deploy/docker/build.lock deploy/docker/runtime.lock ./
RUN pip install --require-hashes --only-binary :all: --requirement build.lock \
 && pip --python /opt/perdure/bin/python install --require-hashes --only-binary :all: --requirement runtime.lock

COPY framework framework
COPY services services
RUN pip wheel --no-deps --no-build-isolation --no-index --wheel-dir wheels ./framework ./services \
 && pip --python /opt/perdure/bin/python install --no-deps --no-index wheels/*.whl
COPY deploy/docker/healthcheck.py /opt/perdure/healthcheck.py

FROM base
# pip is not needed at run time and would help an attacker.
RUN pip uninstall --yes --root-user-action ignore pip >/dev/null \
 && rm -rf /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib /root/.cache
# A new volume takes the owner of its mount point, so these folders exist. Other images read them through the group
# (compose: group_add).
RUN groupadd --gid 10001 perdure \
 && useradd --uid 10001 --gid perdure --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin perdure \
 && install --directory --owner perdure --group perdure --mode 0750 \
      /var/lib/perdure /secrets /secrets/database /secrets/flights /secrets/hotels /secrets/payments \
      /secrets/notifications /secrets/engine /secrets/services /secrets/links /secrets/console /secrets/grafana
COPY --from=build /opt/perdure /opt/perdure
# The base image lacks byte code of the standard library, and a read-only root file system cannot store any. Compiling the
# imported modules here halves the start time.
RUN /opt/perdure/bin/python -c "import asyncio, json; from importlib import import_module; \
      from services.runtime.topology import SERVICES; [import_module(each.module) for each in SERVICES]; import services.runtime.cli, services.console.app"
ENV PATH=/opt/perdure/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    OTEL_RESOURCE_ATTRIBUTES=service.namespace=perdure,service.version=0.1.0
USER 10001:10001
WORKDIR /var/lib/perdure
# The services drain on SIGTERM for at most 14 s; allow at least that before a SIGKILL.
STOPSIGNAL SIGTERM
ENTRYPOINT ["perdure-platform"]
CMD ["--help"]
