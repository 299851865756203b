# Every target sets up what it needs: `make demo` and `make test` on a fresh clone are all there is to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-slow chaos fuzz bench lint docs format clean

demo: $(VENV)/.demo
	$(BIN)/kdpipe demo --out runs/demo

# One process a core, and one thread each: two that want all cores slow each other many times over.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist loadfile

# Minutes each: kills at every phase, corruption of every file, processes side by side.
test-slow: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 8 --dist worksteal

# Damaged and hostile input for every parser, two million times and more, into docs/reliability.md; an hour or so.
fuzz: $(VENV)/.test
	$(INSTALL) '.[test,fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --document docs/reliability.md

# Kills, failing disks, a faulty S3 and more, at moments drawn from seeds; drawn into docs/reliability.md.
# SEEDS=N, FIRST=N and ONLY='part of a kind of fault' choose runs, and then draw nothing unless OUT=FILE.md is given.
SEEDS ?= 105
OUT ?= $(if $(ONLY)$(FIRST),,docs/reliability.md)
chaos: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --seeds $(SEEDS) --first $(or $(FIRST),0) \
		$(if $(ONLY),--only '$(ONLY)') $(if $(OUT),--out '$(OUT)')

# Every claim of speed, size and exactness measured anew, into the tables of docs/benchmarks.md; leave the machine alone meanwhile.
# PHOTOS=INDEX, an index of photographs for the benches that decode; the digits without.
bench: $(VENV)/.demo
	$(BIN)/python -m benchmarks all --out docs/benchmarks.md $(if $(PHOTOS),--index '$(PHOTOS)')

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Reference pages from the docstrings, into runs/docs; a warning is an error.
docs: $(VENV)/.test
	$(BIN)/python -W error -m pdoc --docformat google --output-directory runs/docs \
		kdpipe '!kdpipe[.].*' $(addprefix kdpipe.,errors results losses views targets teacher.config trainer.config)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps: installed since pyproject.toml or the constraints last changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[test]'
	touch $@ $(VENV)/.demo
