#!/usr/bin/env bash
# Restores a backup into a platform without data, and starts it:   deploy/backup/restore.sh FOLDER
#
# Fails if the engine has data; `docker compose down --volumes` deletes it. Invocations that ran during the backup continue.
# Later changes are lost, so clients must repeat later orders, with the same trip ID.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
case $1 in /*) folder=$1 ;; *) folder=$OLDPWD/$1 ;; esac
(cd "$folder" && sha256sum --quiet --check SHA256SUMS) || { echo "$folder is no whole backup" >&2; exit 1; }

quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Restore the secrets first, since new passwords would not match the restored data.
quietly docker compose build
held=$(docker compose run --rm --no-deps -T --entrypoint ls restate -A /restate-data 2>"$log") || { cat "$log" >&2; exit 1; }
[ -z "$held" ] || { echo "the engine has data already; to forget all of it: docker compose down --volumes" >&2; exit 1; }
quietly docker compose run --rm --no-deps -T --entrypoint tar secrets -C /secrets -xf - <"$folder/secrets.tar"
quietly docker compose run --rm --no-deps -T --entrypoint tar restate -C /restate-data -xf - <"$folder/restate.tar"
quietly docker compose up --detach --wait --no-build postgres
for service in flights hotels payments notifications; do
  quietly docker compose exec -T postgres pg_restore --username perdure --dbname "$service" --clean --if-exists \
    --single-transaction <"$folder/$service.dump"
done
quietly docker compose up --detach --wait --no-build
echo "restored from $folder, and started"
