#!/bin/sh
# apt-install.sh RECORD PACKAGE...
# Installs packages, and writes the names of all that are new on this host to the file RECORD and to standard output.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
record=$1
shift

installed() { dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u; }

mkdir -p "$(dirname "$record")"
before=$(mktemp)
trap 'rm -f "$before"' EXIT
installed > "$before"

# A fresh cloud host upgrades itself right after its first boot: wait for that. Configuration that is there already is
# ours: keep it.
apt-get update --quiet --quiet --option DPkg::Lock::Timeout=300 --option Acquire::Retries=3 >&2
apt-get install --yes --quiet --quiet --no-install-recommends --option DPkg::Lock::Timeout=300 \
  --option Acquire::Retries=3 --option APT::Keep-Downloaded-Packages=false --option Dpkg::Options::=--force-confold "$@" >&2 || failed=$?

# What a failed installation left behind is recorded as well, under a name that lets the next run try again.
installed | comm -13 "$before" - >> "$record.part"
[ -z "${failed:-}" ] || exit "$failed"
mv "$record.part" "$record"
cat "$record"
