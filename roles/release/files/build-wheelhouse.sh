#!/bin/sh
# build-wheelhouse.sh PYTHON LOCK VERSION ARCHITECTURE TAR
# Fetches the wheels of LOCK, checked against its hashes, for hosts with that version of Python on Linux with glibc,
# and packs them with the lock into TAR.
set -eu
python=$1 lock=$2 version=$3 architecture=$4 tar=$5

mkdir -p "$(dirname "$tar")"
exec 9>"$tar.lock"
flock 9 # two fleets may be deployed to at the same time: the second finds what the first has fetched
[ ! -e "$tar" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work" "$tar.part"' EXIT

# pip must be told every tag by name: glibc 2.36 is what the oldest supported distribution has.
platforms="--platform manylinux2014_$architecture --platform manylinux2010_$architecture --platform manylinux1_$architecture"
for minor in $(seq 5 36); do
  platforms="$platforms --platform manylinux_2_${minor}_$architecture"
done

# shellcheck disable=SC2086 # the list of options is meant to be split
"$python" -m pip download --quiet --no-deps --require-hashes --only-binary=:all: \
  --implementation cp --python-version "$version" $platforms --dest "$work" --requirement "$lock"
cp "$lock" "$work/requirements.txt"

tar --create --file "$tar.part" --directory "$work" .
mv "$tar.part" "$tar"
