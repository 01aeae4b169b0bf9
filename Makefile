# make demo   the whole way on the embedded family: train, score, publish, analyse, report
# make study  every setting of the KL scale on a larger family: quantised, fine-tuned, layer by layer, weights
# make test   lint, types and all tests
# make faults  crashes, a misbehaving network and races against the store: SCHEDULES=10000 SEED=1
# make bench  speed and memory, as ratios against named peers measured in the same run
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo study test lint faults bench clean

# What is installed: the exact versions of constraints.txt. The stamp is renewed when what it depends on changes.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing klray[$*] (about 2 GB, some minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/viz.stamp
	$(BIN)/klray demo

study: $(VENV)/study.stamp
	$(BIN)/klray study

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/bench.stamp
	$(BIN)/python -m tests.benchmarks

SCHEDULES ?= 10000
faults: $(VENV)/dev.stamp
	$(BIN)/python -m tests.faults --schedules $(SCHEDULES) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build dist
