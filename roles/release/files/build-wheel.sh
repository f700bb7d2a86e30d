#!/bin/sh
# build-wheel.sh PYTHON SOURCE CACHE
# Builds the wheel of the package in SOURCE into CACHE/<id>, unless it is there; prints the id, and "built" if it did.
#
# The id is the hash of all that a release consists of: the same sources give the same id, and hosts that have it have
# nothing to do. A copy is hashed and built, so it is one state of the sources even while somebody edits them; and
# setuptools would pack what earlier builds left in a build directory.
set -eu
python=$1 source=$2 cache=$3

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two fleets may be deployed to at the same time

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$source" && find crawler -name '*.py' -print0 | tar --create --null --files-from=-) | tar --extract --directory="$work"
cp "$source/pyproject.toml" "$source/requirements-hosts.txt" "$source/README.md" "$work/"

id=$(cd "$work" && find crawler pyproject.toml requirements-hosts.txt -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-12)
if [ -e "$cache/$id/complete" ]; then
  echo "$id"
  exit
fi

mkdir -p "$cache/$id"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$cache/$id" "$work"
touch "$cache/$id/complete"
echo "$id built"
