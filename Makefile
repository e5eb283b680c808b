.DEFAULT_GOAL := help
UV := $(shell command -v uv || echo python3 -m uv)
RUN := $(UV) run --group dev

.PHONY: help setup check format test campaign constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## an environment in .venv, with everything for development
	python3 -m pip install --quiet uv
	$(UV) sync --group dev

check:  ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format:  ## put the code in ruff's format, sort imports
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

test:  ## the test suite, as README.md has it
	$(RUN) pytest -n 2 --dist loadfile

campaign:  ## kill training 50 times at random moments (a quarter of an hour); writes results/campaign.json
	$(RUN) python benchmarks/campaign.py

constraints:  ## write constraints.txt, the pins for pip
	$(UV) pip compile pyproject.toml --group dev --universal --no-emit-index-url --no-header --no-annotate -o constraints.txt

clean:  ## remove what building and testing leave (not runs/)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist uv.lock
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
