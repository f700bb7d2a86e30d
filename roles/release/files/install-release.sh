#!/bin/sh
# install-release.sh PYTHON RELEASE WHEELHOUSE KEEP
# Installs the wheel in the directory RELEASE with its dependencies from the tar WHEELHOUSE into RELEASE/venv, without any
# index; the file RELEASE/RELEASE says that it is complete. Then removes old releases, but for the newest KEEP.
set -eu
umask 022
python=$1 release=$2 wheelhouse=$3 keep=$4

# Not in /tmp, where a careful administrator allows no programs to run.
work=$(mktemp -d -p "$(dirname "$wheelhouse")")
trap 'rm -rf "$work"' EXIT
tar --extract --file "$wheelhouse" --directory "$work"

# uv travels as a wheel like the rest; a wheel is a zip file, and that every Python can unpack.
"$python" -m zipfile -e "$work"/uv-*.whl "$work/uv"
uv=$(echo "$work"/uv/uv-*.data/scripts/uv)
chmod 0755 "$uv"
export UV_OFFLINE=1 UV_NO_CACHE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never

rm -rf "$release/venv"
"$uv" venv --quiet --python "$python" "$release/venv"
# Bytecode is compiled now, as the services may not write here; without it they start in twice the time.
"$uv" pip install --quiet --python "$release/venv" --no-index --compile-bytecode \
  --find-links "$work" --require-hashes --requirement "$work/requirements.txt"
"$uv" pip install --quiet --python "$release/venv" --no-index --compile-bytecode --no-deps "$release"/*.whl
basename "$release" > "$release/RELEASE"

# Remove what is old, unless it is the current release or a process still runs from it; and the wheels of older locks.
cd "$release/.."
# shellcheck disable=SC2012,SC2035 # by age, which only ls sorts by; the names are hashes
ls -1t */RELEASE | tail -n "+$((keep + 1))" | while read -r marker; do
  old=$PWD/$(dirname "$marker")
  [ "$old" = "$(readlink -f /opt/crawler/current)" ] && continue
  grep --quiet --no-messages --text --fixed-strings "$old/" /proc/[0-9]*/maps /proc/[0-9]*/cmdline && continue
  rm -rf "$old"
done
find "$(dirname "$wheelhouse")" -name '*.tar' ! -path "$wheelhouse" -delete
