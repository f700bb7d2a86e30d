#!/bin/sh
# Removes the packages on record, with their data and users; where a server was there before, only what is the crawler's.
# Prints what it removed.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
records=/var/lib/crawler-packages
[ -d "$records" ] || exit 0

packages=$(cat "$records"/*)
installed() { echo "$packages" | grep --quiet --line-regexp "$1"; }

if [ -e "$records/postgresql" ] && ! installed postgresql-common; then
  runuser --user postgres -- dropdb --if-exists crawler
  runuser --user postgres -- dropuser --if-exists crawler
  rm -f /etc/postgresql/*/main/conf.d/crawler.conf
  echo "removed the database crawler"
fi
# shellcheck disable=SC2086 # a list of packages
if [ -n "$packages" ]; then
  # The package locales removes this file when it goes, even one that was there before it.
  locale=$(cat /etc/default/locale 2>/dev/null || true)
  apt-get purge --yes --quiet --quiet --option DPkg::Lock::Timeout=300 $packages >/dev/null
  [ -z "$locale" ] || echo "$locale" > /etc/default/locale
  echo "removed the packages:" $packages
fi

if [ -e "$records/rabbitmq-server" ]; then
  for dropin in epmd.socket.d/loopback.conf rabbitmq-server.service.d/journal.conf; do
    rm -f "/etc/systemd/system/$dropin"
    rmdir --ignore-fail-on-non-empty "/etc/systemd/system/${dropin%/*}"
  done
  if ! installed rabbitmq-server; then
    # The crawler's node has a name and data of its own; without its configuration the server is the node it was before.
    systemctl stop rabbitmq-server epmd.socket
    rm -rf /etc/rabbitmq/definitions.json /etc/rabbitmq/rabbitmq.conf /etc/rabbitmq/rabbitmq-env.conf \
      /var/lib/rabbitmq/mnesia/rabbit@localhost*
    for kept in /etc/rabbitmq/*.before-crawler; do
      [ ! -e "$kept" ] || mv "$kept" "${kept%.before-crawler}"
    done
    systemctl daemon-reload
    systemctl start epmd.socket rabbitmq-server
    echo "removed the crawler's node of RabbitMQ"
  fi
fi

# What the packages' own scripts leave behind on purpose: data, logs, users.
forget() {
  user=$1
  shift
  rm -rf "$@"
  if getent passwd "$user" >/dev/null; then userdel "$user" 2>/dev/null; fi
  if getent group "$user" >/dev/null; then groupdel "$user" 2>/dev/null || true; fi
}
if installed rabbitmq-server; then
  pkill -u rabbitmq || true # the Erlang port mapper outlives its server
  forget rabbitmq /etc/rabbitmq /var/lib/rabbitmq /var/log/rabbitmq
  forget epmd
fi
if installed postgresql-common; then
  forget postgres /etc/postgresql /etc/postgresql-common /var/lib/postgresql /var/log/postgresql
fi
if installed ssl-cert; then
  forget ssl-cert # came with PostgreSQL
fi
