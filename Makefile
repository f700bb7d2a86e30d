# 'make' alone says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test lint unit integration molecule default single mutate fuzz emulate bench million clean distclean

# The tools find one another (molecule calls ansible-playbook, pytest), and no shell needs an activated environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
PAGES ?= 1000000

help: ## say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/ready ## start five hosts in containers, deploy to them, crawl four sites to the last page
	molecule/prerequisites
	ansible-playbook -i inventory/demo molecule/create.yml
	ansible-playbook -i inventory/demo deploy.yml
	python crawler/seed.py --fleet demo --job molecule/job.yml --name "demo-$$(date +%Y%m%d-%H%M%S)" \
		--watch --timeout 900 --summary .cache/fleet/demo/summary.json
	@python tests/fleet/site_walk.py --fleet demo --check .cache/fleet/demo/summary.json

test: lint unit ## everything, the fleets side by side; takes the demo's hosts down, since it tests with them
	scanner/fuzz.sh python 15
	molecule/prerequisites
	tests/side-by-side integration default single

lint: .venv/ready ## ruff, mypy, yamllint, ansible-lint, shellcheck
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	ansible-lint --strict
	grep -rlIE --exclude='*.j2' '^#!/bin/(ba)?sh$$' .ci molecule playbooks roles scanner tests | xargs shellcheck

unit: .venv/ready ## the crawler's core, the roles' templates, the documents' commands: no service, no container
	pytest tests/unit tests/templates tests/docs

integration: .venv/ready ## the crawler against real services
	molecule/prerequisites
	pytest tests/integration

molecule: default single ## every scenario: create, deploy, deploy again, verify by crawling, destroy

default single: .venv/ready
	molecule/prerequisites
	molecule test --scenario-name $@ --report --no-command-borders

mutate: .venv/ready ## apply each known bug of tests/mutants to a copy and report whether the tests notice; wants 90 %
	python tests/mutants/run.py

FUZZ_SECONDS ?= 600
fuzz: .venv/ready ## made-up answers to both HTTP clients for FUZZ_SECONDS (600); pages to scanner and lexbor; broken pages under sanitizers
	python -m gevent.monkey tests/unit/worker/differential.py $(FUZZ_SECONDS) 1000000000 $$RANDOM$$RANDOM
	python tests/unit/worker/soup.py --documents 100000
	scanner/fuzz.sh python 120

emulate: .venv/ready ## the scanner's tests on an emulated aarch64
	scanner/emulated.sh python

bench: .venv/ready ## pages per second of CPU, beside Scrapy and the recipe of old; writes docs/performance.md
	molecule/prerequisites
	python bench/run.py

million: .venv/ready ## crawl a million real pages on this machine, and check every one; make million PAGES=20000 for fewer
	molecule/prerequisites
	python bench/million.py --pages $(PAGES)

clean: .venv/ready ## take down the hosts of the demo and of the tests
	for inventory in demo single integration; do ansible-playbook -i inventory/$$inventory molecule/destroy.yml; done

distclean: clean ## clean, and remove the images, caches, passwords and .venv as well
	podman images --quiet --filter 'reference=localhost/crawler-fleet/*' | sort -u | xargs --no-run-if-empty podman rmi --force
	rm -rf .cache .fleet .venv

# Where there is no scanner (another architecture, no package index), build.py says so, and lexbor reads the pages.
.venv/ready: .venv/packages scanner/build.py scanner/scanner.cpp scanner/crawler_scanner/__init__.py
	@if wheel=$$(.venv/bin/python scanner/build.py); then \
		.venv/bin/pip install --quiet --no-deps --force-reinstall "$$wheel"; else [ $$? = 3 ]; fi
	touch $@

# Made anew, never mended, whenever a locked version changed.
.venv/packages: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || molecule/prerequisites python3-venv
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes --requirement requirements.txt
	.venv/bin/pip install --quiet --no-deps --editable .
	touch $@
