# restate-server as a user of its own. The official image runs as root; all that it needs to do without is a data folder
# that the user may write to: a new volume takes the owner of the folder that it is mounted on.
FROM docker.restate.dev/restatedev/restate:1.7.12
RUN install --directory --owner 10001 --group 10001 --mode 0700 /restate-data
COPY deploy/restate/restate.toml /etc/restate/restate.toml
ENV RESTATE_CONFIG=/etc/restate/restate.toml \
    RESTATE_BASE_DIR=/restate-data
USER 10001:10001
WORKDIR /restate-data
