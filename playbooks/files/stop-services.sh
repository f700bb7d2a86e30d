#!/bin/sh
# Stops and disables the crawler, if it is there; prints what it stopped.
set -eu
running=$(systemctl list-units --all --plain --no-legend 'crawler*' | cut -d ' ' -f 1)
[ -z "$running" ] || echo "stopped:" $running
systemctl disable --quiet crawler.target 2>/dev/null || true
# shellcheck disable=SC2086 # a list of units
[ -z "$running" ] || systemctl stop $running
systemctl reset-failed 'crawler*' 2>/dev/null || true
