#!/bin/sh
# build-wheel.sh PYTHON SOURCE CACHE ARCHITECTURE...
# Builds the wheel of the package in SOURCE into CACHE/<id>, and the scanner's into CACHE/<id>/ARCHITECTURE, unless they are
# there; prints the id, and "built" if it did. Where there can be no scanner, says so on its standard error.
#
# The id is the hash of all that a release consists of: the same sources give the same id, and hosts that have it have
# nothing to do. A copy is hashed and built, so it is one state of the sources even while somebody edits them; and
# setuptools would pack what earlier builds left in a build directory.
set -eu
python=$1 source=$2 cache=$3
shift 3

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two fleets may be deployed to at the same time

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$source" && find crawler scanner \( -name '*.py' -o -name '*.cpp' \) -print0 | tar --create --null --files-from=-) | tar --extract --directory="$work"
cp "$source/pyproject.toml" "$source/requirements-hosts.txt" "$source/README.md" "$work/"

# A host that did without the scanner gets it once it can be built: that is another release.
scanner=$("$python" "$work/scanner/build.py" --identity) || scanner=none
id=$( (cd "$work" && find crawler pyproject.toml requirements-hosts.txt -type f | LC_ALL=C sort | xargs sha256sum && echo "$scanner") |
  sha256sum | cut -c 1-12)
built=''
if [ ! -e "$cache/$id/complete" ]; then
  mkdir -p "$cache/$id"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$cache/$id" "$work"
  touch "$cache/$id/complete"
  built=' built'
fi
for architecture; do
  [ ! -d "$cache/$id/$architecture" ] || continue
  wheel=$("$python" "$work/scanner/build.py" "$architecture" --cache "$cache/../scanner") || continue
  mkdir "$cache/$id/$architecture"
  cp "$wheel" "$cache/$id/$architecture/"
  built=' built'
done
echo "$id$built"
