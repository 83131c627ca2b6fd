# `make demo` and `make test` do everything, set-up included, on a machine with Python 3.11.
PYTHON := .venv/bin/python
DEMO := $(CURDIR)/runs/demo

.PHONY: setup lock demo test lint bench
.DEFAULT_GOAL := demo

setup: .venv/.complete

.venv/.complete: requirements.lock requirements.overrides pyproject.toml scripts/setup.sh
	sh scripts/setup.sh

# Plain name==version lines: they install from any index, with whichever build of torch it offers.
lock:
	uv pip compile --quiet pyproject.toml --extra dev --override requirements.overrides --python-version 3.11 \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links | sed 's/+cpu$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock

demo: setup
	$(PYTHON) -m mmsrarec_ray.local -- python jobs/summarize.py --config configs/demo.yaml run=$(DEMO)
	@$(PYTHON) scripts/after_demo.py $(DEMO)

test: setup
	$(PYTHON) -m pytest

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# What is measured beside its reference; each file says what it does: python benchmarks/NAME.py --help
bench: setup
	$(PYTHON) benchmarks/retrieval.py --output $(CURDIR)/runs/bench/retrieval.json
