# PostgreSQL that never runs as root, not even to begin with: its data folder is made here, so the entry point has no
# owner to change and needs no capability.
FROM postgres:17.10-bookworm
# A tmpfs takes the mode of the folder that it is mounted on when its container is started again: the socket's folder has
# to be one that postgres may write to, whatever the base image says.
RUN install --directory --owner postgres --group postgres --mode 0700 /var/lib/postgresql/perdure \
 && install --directory --owner postgres --group postgres --mode 3777 /var/run/postgresql
ENV PGDATA=/var/lib/postgresql/perdure
USER postgres
