#!/usr/bin/env bash
# Generate Python from proto/ with a pinned generator, in a separate venv because it requires an older protobuf.
# With --check: fail if the committed code is stale, or if `buf lint` reports errors.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/proto-venv
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import grpc_tools' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.71.2' 'setuptools<81'
fi
out=.
if [ "${1:-}" = "--check" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
"$venv/bin/python" -W ignore -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" \
  proto/stepflow/mesh/v1/*.proto proto/stepflow/etcd/v1/*.proto proto/stepflow/pull/v1/*.proto
services=$(grep -l '^service ' proto/stepflow/mesh/v1/*.proto)
# shellcheck disable=SC2086  # file names without spaces
"$venv/bin/python" -W ignore -m grpc_tools.protoc -Iproto --grpc_python_out="$out" $services
if [ "$out" != . ]; then
  (cd "$out" && find stepflow -type f) | while read -r file; do
    cmp -s "$out/$file" "$file" || { echo "stale: $file; run 'make proto'" >&2; exit 1; }
  done
  "$(scripts/tools.sh buf)" lint proto
fi
