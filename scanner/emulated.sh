#!/bin/sh
# emulated.sh PYTHON
# Builds the scanner for aarch64 and runs the tests of what it finds in pages on an emulated processor of that kind, by
# Debian's Python 3.11 for it. Some minutes; nothing is installed but the emulator.
set -eu
cd "$(dirname "$0")/.."
python=$1 root=.cache/scanner/aarch64

molecule/prerequisites qemu-user-static mmdebstrap
wheel=$("$python" scanner/build.py aarch64)
if ! [ -e "$root/done" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    # shellcheck disable=SC2016 # apt-get expands these itself
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
        sed -nE '/backports|proposed/d; s/ (bookworm|trixie|stable|oldstable)(-updates|-security)? / bookworm\2 /p' | sort -u |
        mmdebstrap --quiet --architectures=arm64 --variant=extract --include=python3,libstdc++6 bookworm "$root/system" -
    # What the tests import, as it is locked, in the wheels for that architecture.
    awk '/^(pytest|hypothesis|iniconfig|pluggy|sortedcontainers|packaging|pygments)==/ { kept = 1; print; next }
        /^[^ ]/ { kept = 0 } kept' requirements.txt >"$root/tests.txt"
    "$python" -m pip install --quiet --target "$root/site" --only-binary :all: --no-deps --require-hashes --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
        --requirement requirements-hosts.txt --requirement "$root/tests.txt"
    touch "$root/done"
fi
rm -rf "$root/scanner"
"$python" -m zipfile -e "$wheel" "$root/scanner"

emulated() {
    PYTHONHOME=$root/system/usr PYTHONPATH=$root/scanner:$root/site:. PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -L "$root/system" "$root/system/usr/bin/python3.11" "$@"
}
emulated -c 'import platform, crawler_scanner; print("on", platform.machine())'
# A process that starts another starts one for this machine's own processor, so the one test that does is left out.
emulated -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestConfigWarning \
    -k 'not where_there_is_no_scanner' tests/unit/worker/test_parse.py tests/unit/worker/test_encoding.py
