#!/bin/sh
# build-wheel.sh PYTHON SOURCE DIR
# Builds the wheel of the package in SOURCE into DIR; DIR/complete says that all went well.
set -eu
python=$1 source=$2 dir=$3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/crawler"
cp "$source"/crawler/*.py "$work/crawler/"
cp "$source/pyproject.toml" "$source/README.md" "$work/"

mkdir -p "$dir"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$dir" "$work"
touch "$dir/complete"
