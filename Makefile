# `make demo` and `make test` do everything, set-up included, on a machine with Python 3.11.
PYTHON := .venv/bin/python
DEMO := $(CURDIR)/runs/demo
RESULTS := $(CURDIR)/runs/results

.PHONY: setup lock demo results serve test drills lint bench
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
	$(PYTHON) -m mmsrarec_ray.local -- python jobs/pipeline.py --config configs/demo.yaml run=$(DEMO)
	@$(PYTHON) scripts/after_demo.py $(DEMO)

# The shop with 12,000 users, every method beside both oracles; goes on where it was stopped.
results: setup
	$(PYTHON) -m mmsrarec_ray.local -- python jobs/pipeline.py --config configs/shop.yaml run=$(RESULTS)
	@$(PYTHON) scripts/after_demo.py $(RESULTS)

# The demo's recommendations over HTTP and on a page: http://127.0.0.1:8000/
serve: setup
	.venv/bin/serve run --address local serve_apps.recommend:build run=$(DEMO)

test: setup
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Kills workers, engines, nodes and drivers, fills disks, damages data; what was found: build/drills.md
drills: setup
	$(PYTHON) -m pytest -m drill tests/drills

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# What is measured beside its reference; each file says what it does: python benchmarks/NAME.py --help
bench: setup
	$(PYTHON) benchmarks/retrieval.py --output $(CURDIR)/runs/bench/retrieval.json
	$(PYTHON) benchmarks/score.py --output $(CURDIR)/runs/bench/score.json
