#!/bin/sh
# Build the Debian packages of the SteamOS updater from this checkout: client and server, each with its own libraries.
# usage: deploy/debian/build.sh [DIRECTORY]      where the packages go; default: dist/
# Needs: debhelper dpkg-dev fakeroot gcc python3-dev python3-venv, and PyPI or a mirror that pip knows.
set -eu
output=${1:-dist}
cd "$(dirname "$0")/../.."
mkdir -p "$output"
output=$(cd "$output" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$work/steamos-atomupd
mkdir "$source"
# Only what is part of the project; a checkout may hold anything else.
for part in LICENSE README.md pyproject.toml src deploy examples; do
    cp -a "$part" "$source/"
done
find "$source" \( -name __pycache__ -o -name '*.egg-info' -o -name '*.so' -o -name _kernel.c \) -prune -exec rm -rf {} +
cp -a deploy/debian/debian "$source/debian"
(cd "$source" && dpkg-buildpackage --build=binary --no-sign >"$work/log" 2>&1) || {
    tail -n 40 "$work/log" >&2
    exit 1
}
cp "$work"/*.deb "$output/"
ls "$output"/steamos-atomupd-*.deb
