#!/bin/sh
# Builds the images, starts everything, ingests the sample photos, searches, and removes it all again. It needs Docker
# with Compose, curl, 10 GB of disk and 8 GB of memory, and leaves only the images. From any folder: docker/smoke.sh
# With GPUs: docker/smoke.sh -f docker/compose.gpu.yaml
set -eu
cd "$(dirname "$0")/.."

settings=$(mktemp)
password() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }
token=$(password)
port=${API_PORT:-18080}
cat >"$settings" <<END
MILVUS_PASSWORD=$(password)
MINIO_PASSWORD=$(password)
REDIS_PASSWORD=$(password)
FLOWER_PASSWORD=$(password)
LDOT_SERVE_TOKEN=$token
API_PORT=$port
END

compose() { docker compose --project-name ldot-smoke --env-file "$settings" -f docker/compose.yaml "$@"; }
down() {
    status=$?
    if [ "$status" != 0 ]; then compose "$@" logs --tail 30 || true; fi
    compose "$@" down --volumes --timeout 60 || status=1
    rm -f "$settings"
    exit "$status"
}
trap 'down "$@"' EXIT
trap 'exit 1' INT TERM

echo "== build"
compose "$@" build
echo "== up"
compose "$@" up --detach --wait --wait-timeout 600
echo "== ingest"
compose "$@" exec -T worker celery -A workers enqueue /photos --metadata /photos/photos.jsonl
echo "== search"
answer=$(curl --fail --silent --show-error --max-time 60 "http://127.0.0.1:$port/v1/search" \
    --header "Authorization: Bearer $token" --header 'Content-Type: application/json' --data '{"text": "a long red bus", "k": 1}')
echo "$answer"
case $answer in
*000000568290.jpg*) ;;
*)
    echo "The red bus, 000000568290.jpg, is not the first hit."
    exit 1
    ;;
esac
echo "== without the token"
status=$(curl --silent --output /dev/null --write-out '%{http_code}' --max-time 60 "http://127.0.0.1:$port/v1/search" \
    --header 'Content-Type: application/json' --data '{"text": "a long red bus"}')
if [ "$status" != 401 ]; then
    echo "A search without the token got $status instead of 401."
    exit 1
fi
echo "== down"
