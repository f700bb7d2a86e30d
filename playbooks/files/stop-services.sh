#!/bin/sh
# Stops and disables the crawler, if it is there; prints what it stopped.
set -eu
running=$(systemctl list-units --all --plain --no-legend 'crawler*' | cut -d ' ' -f 1)
systemctl disable --quiet crawler.target 2>/dev/null || true
# shellcheck disable=SC2086 # a list of units
if [ -n "$running" ]; then
  echo "stopped:" $running
  systemctl stop $running
fi
systemctl reset-failed 'crawler*' 2>/dev/null || true
