#!/bin/sh
# apt-install.sh RECORD PACKAGE...
# Installs packages and adds the names of all that are new on this host to the file RECORD.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
record=$1
shift

installed() { dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u; }

before=$(mktemp)
trap 'rm -f "$before"' EXIT
installed > "$before"

# A fresh cloud host upgrades itself right after its first boot: wait for that. Files that are already there are ours: keep them.
set -- --yes --no-install-recommends --option DPkg::Lock::Timeout=300 --option Acquire::Retries=3 --option Dpkg::Options::=--force-confold "$@"
apt-get update --quiet --quiet --option Acquire::Retries=3
apt-get install --quiet --quiet "$@" || failed=$?

# What a failed installation left behind is recorded as well.
installed | comm -13 "$before" - >> "$record"
exit "${failed:-0}"
