# Two commands do all their set-up on a fresh Debian 12: `make demo` runs the main job, `make test` proves it.
# Everything lives in .venv; nothing is installed on the machine except, as root, missing Debian packages (named below).

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
ARGS   ?=
SECONDS ?= 60
SEEDS  ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long packages packages-lock test-packages msi chaos lint types reference services bench bench-long clean

help:
	@echo 'make demo [ARGS="--events 20000 --exit"]   the main job on loopback: devices, TLS, spool, files'
	@echo 'make demo ARGS=--kafka                     the same, with a real Apache Kafka behind it'
	@echo 'make test | test-long                      all tests (minutes) | hundreds of kills, long overloads'
	@echo 'make msi [ARGS=…]                          the agent for Windows: docs/windows.md'
	@echo 'make packages [ARGS=--twice]               deb and rpm in dist/packages, built in a clean Debian 12 (root)'
	@echo 'make test-packages                         the packages, systemd and Windows (wine)'
	@echo 'make chaos [SECONDS=300 SEEDS=10 ARGS=…]   seeded faults over everything, and an account: docs/faults.md'
	@echo 'make bench [ARGS=…] | bench-long           collector, agent; side by side with rsyslog and syslog-ng'
	@echo 'make lint | types | reference              ruff | mypy --strict | write conf/*.reference.yaml'

# The codec sources are prerequisites: a changed codec is built anew.
$(STAMP): pyproject.toml setup.py $(wildcard ndagent/wire/*.pyx ndagent/wire/*.pxi)
	@sh .ci/prerequisites
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[fast,test,lint]'
	@touch $@

setup: $(STAMP)

# --kafka takes its broker from the tests: see ndcollector/demo/broker.py.
demo: $(STAMP)
	@ND_DEMO_BROKER='env PYTHONPATH=tests $(PYTHON) -m services.demo_broker' $(VENV)/bin/ndcollector demo $(ARGS)

services: $(STAMP)
	@$(PYTHON) tests/services/fetch.py

test: $(STAMP) services
	$(PYTHON) -m pytest -q -m "not long and not packages" -n 3 --dist loadgroup $(ARGS)

test-long: $(STAMP) services
	$(PYTHON) -m pytest -q -m long --timeout 3600 $(ARGS)

packages: $(STAMP)
	@sh packaging/prerequisites
	@PYTHONPATH=packaging $(PYTHON) -m ndpackages build $(ARGS)

# Resolves what goes into the packages anew; the diff of the lock is to be read.
packages-lock: $(STAMP)
	@sh packaging/prerequisites
	@PYTHONPATH=packaging $(PYTHON) -m ndpackages lock

# Needs root for what it installs: wine and a compiler for Windows (tests/packages/wine.py).
test-packages: $(STAMP)
	$(PYTHON) -m pytest -q -m packages --timeout 3600 $(ARGS)

# Needs wixl, msitools, osslsigncode and gcc-mingw-w64-x86-64: docs/windows.md.
msi: $(STAMP)
	@$(PYTHON) packaging/build_msi.py $(ARGS)

chaos: $(STAMP) services
	@$(PYTHON) tests/faults/chaos.py --seconds $(SECONDS) --seeds $(SEEDS) $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .

types: $(STAMP)
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --platform win32 -p ndagent

reference: $(STAMP)
	$(PYTHON) -m ndcollector.reference
	$(PYTHON) -m ndagent.reference

bench: $(STAMP) services
	@$(PYTHON) bench/run.py $(ARGS)
	@$(PYTHON) bench/codec.py
	@$(PYTHON) bench/https.py
	@$(PYTHON) bench/kafka.py
	@$(PYTHON) bench/mqtt.py
	@$(PYTHON) bench/agent.py
	@$(PYTHON) bench/outputs.py
	@$(PYTHON) bench/outputs.py --through
	@$(PYTHON) bench/outputs.py --dead
	@$(PYTHON) bench/netflow.py
	@$(PYTHON) bench/snmp.py
	@$(PYTHON) bench/syslog_udp.py
	@$(PYTHON) bench/windows_event.py

bench-long: $(STAMP) services
	@$(PYTHON) bench/run.py --overload-seconds 600 $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info demo-state bench-results ndagent/wire/_codec.c ndagent/wire/*.so
