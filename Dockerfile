# Every image of the platform, and with it every version that is not ours. Compose builds each as a target of this file.
# A tag may be moved; `docs/how-to/deploy.md` says how to pin a digest beside it.
FROM python:3.12.13-slim-bookworm AS base
FROM prom/prometheus:v3.13.3 AS prometheus
FROM grafana/grafana:12.4.4 AS grafana
FROM jaegertracing/jaeger:2.19.0 AS jaeger
FROM chrislusf/seaweedfs:4.47 AS objects

# restate-server as a user of its own. The official image runs as root; all that it needs to do without is a data folder
# that the user may write to: a new volume takes the owner of the folder that it is mounted on.
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

# PostgreSQL that never runs as root, not even to begin with: its data folder is made here, so the entry point has no
# owner to change and needs no capability.
FROM postgres:17.10-bookworm AS postgres
# A tmpfs takes the mode of the folder that it is mounted on when its container is started again: the socket's folder has
# to be one that postgres may write to, whatever the base image says.
RUN install --directory --owner postgres --group postgres --mode 0700 /var/lib/postgresql/perdure \
 && install --directory --owner postgres --group postgres --mode 3777 /var/run/postgresql
ENV PGDATA=/var/lib/postgresql/perdure
USER postgres

# One image for every service of the platform; the command picks the service: `serve flights`, `migrate`, `register` …
#
# In it: Python, the locked packages and the two distributions of this workspace, compiled to byte code, in one virtual
# environment that root owns. Not in it: pip, a compiler, curl, the tests, the tools. It runs as a user of its own and
# writes nothing, so its root file system can be read-only.
FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/perdure

# The locked packages first: this layer stays as it is until a lock changes. `--only-binary` keeps any package's build
# script from running here, and a compiler from being missed.
COPY deploy/docker/build.lock deploy/docker/runtime.lock ./
RUN pip install --require-hashes --only-binary :all: --requirement build.lock \
 && pip --python /opt/perdure/bin/python install --require-hashes --only-binary :all: --requirement runtime.lock

COPY framework framework
COPY services services
RUN pip wheel --no-deps --no-build-isolation --no-index --wheel-dir wheels ./framework ./services \
 && pip --python /opt/perdure/bin/python install --no-deps --no-index wheels/*.whl
COPY deploy/docker/healthcheck.py /opt/perdure/healthcheck.py

FROM base
# pip is not needed at run time, and would help an intruder.
RUN pip uninstall --yes --root-user-action ignore pip >/dev/null \
 && rm -rf /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib /root/.cache
# Docker gives a new volume the owner of the folder that it is mounted on, so these are here to be mounted on. The group
# is what other images are let in by (compose: group_add).
RUN groupadd --gid 10001 perdure \
 && useradd --uid 10001 --gid perdure --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin perdure \
 && install --directory --owner perdure --group perdure --mode 0750 \
      /var/lib/perdure /secrets /secrets/database /secrets/engine /secrets/services /secrets/links \
      /secrets/console /secrets/grafana
COPY --from=build /opt/perdure /opt/perdure
# The base image has no byte code of the standard library, and a read-only root file system will never get any: what the
# services import is compiled here, which halves the time to start.
RUN /opt/perdure/bin/python -c "import asyncio, json; from importlib import import_module; \
      from services.runtime.topology import SERVICES; [import_module(each.module) for each in SERVICES]; import services.runtime.cli, services.console.app"
ENV PATH=/opt/perdure/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    OTEL_RESOURCE_ATTRIBUTES=service.namespace=perdure,service.version=0.1.0
USER 10001:10001
WORKDIR /var/lib/perdure
# The services drain on SIGTERM and end within 14 s at most: give them at least that before a SIGKILL.
STOPSIGNAL SIGTERM
ENTRYPOINT ["perdure-platform"]
CMD ["--help"]
