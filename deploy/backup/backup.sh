#!/usr/bin/env bash
# Backs up the platform of docker-compose.yml into a new folder:   deploy/backup/backup.sh FOLDER
#
#   restate.tar       the engine's data: journals, state and records of all sagas
#   flights.dump …    the database of each data-plane service (pg_dump, custom format)
#   secrets.tar       passwords and keys; protect it like the secrets themselves
#   SHA256SUMS        checksums of these files
#
# The engine is stopped during the copy, so that its data and the databases belong to one moment. Otherwise the engine
# could treat writes as done that a copied database lacks. Running invocations continue afterwards. The pause lasts
# seconds for a small platform; clients are refused meanwhile and must retry.
#
# COMPOSE_PROJECT_NAME and COMPOSE_FILE select the platform.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
case $1 in /*) folder=$1 ;; *) folder=$OLDPWD/$1 ;; esac
umask 077
mkdir -p "$folder"
[ -z "$(ls -A "$folder")" ] || { echo "$folder is not empty: choose a new folder" >&2; exit 1; }

began=$(date +%s)
trap 'docker compose up --detach --no-deps --no-build --wait restate >/dev/null 2>&1' EXIT
docker compose stop restate >/dev/null 2>&1
docker compose run --rm --no-deps -T --entrypoint tar restate -C /restate-data -cf - . >"$folder/restate.tar" 2>"$folder/log"
for service in flights hotels payments notifications; do
  docker compose exec -T postgres pg_dump --username perdure --format custom "$service" >"$folder/$service.dump" 2>>"$folder/log"
done
docker compose run --rm --no-deps -T --entrypoint tar secrets -C /secrets -cf - \
  database flights hotels payments notifications engine services links console grafana >"$folder/secrets.tar" 2>>"$folder/log"
docker compose up --detach --no-deps --no-build --wait restate >/dev/null 2>&1
trap - EXIT
rm "$folder/log"
(cd "$folder" && sha256sum restate.tar ./*.dump secrets.tar >SHA256SUMS)
echo "backed up into $folder; the engine was away for $(($(date +%s) - began)) s"
