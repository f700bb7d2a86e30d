#!/bin/sh
# forget-fleet.sh DIRECTORY
# Removes the directory of a fleet, and the link `current` beside it if that is the fleet it names.
set -eu
directory=$1
current=$(dirname "$directory")/current
if [ "$(readlink "$current")" = "$(basename "$directory")" ]; then rm "$current"; fi
rm -rf "$directory"
