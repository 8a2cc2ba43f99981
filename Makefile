# A fresh machine needs Python 3.10 or newer and make: `make demo` and `make test` do the rest.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
OPTIONAL := .venv/installed-optional
DEMO := --data_config config/dataset/rotated_digits.yaml --continual --samples 10 --hold_out 0.2 --epochs 20 --overwrite

.PHONY: demo benchmark test install lint perf clean

# Ten tasks, handwritten digits turned by 0, 10, ... 90 degrees, ten images a class:
# first each task alone, then the zoo, compared with it.
demo: install
	$(BIN)/python modelzoo.py $(DEMO) --method isolated --run_dir runs/demo-isolated
	@echo
	$(BIN)/python modelzoo.py $(DEMO) --run_dir runs/demo --isolated runs/demo-isolated
	@echo
	@echo "the report, to be opened in a browser:"
	@$(BIN)/python report.py runs/demo

# All methods on the digits, five seeds: the tables of docs/benchmarks.md.
benchmark: install
	$(BIN)/python benchmark.py --config config/benchmark/digits.yaml --store runs/digits --jobs 2

# Two processes of one thread each: toy networks do not get faster from more.
test: $(OPTIONAL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

install: $(INSTALLED)

$(INSTALLED): requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed; try make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# For studies on a cluster (Ray, Slurm) and tables in Parquet files.
$(OPTIONAL): requirements-optional.txt $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-optional.txt
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

perf: install
	$(BIN)/python perf/step_efficiency.py
	$(BIN)/python perf/ablation.py
	$(BIN)/python perf/tiny.py
	OMP_NUM_THREADS=1 $(BIN)/python perf/superposition.py
	OMP_NUM_THREADS=1 $(BIN)/python perf/recall.py
	OMP_NUM_THREADS=1 $(BIN)/python perf/scans.py
	OMP_NUM_THREADS=1 $(BIN)/python perf/mixers.py
	OMP_NUM_THREADS=1 $(BIN)/python perf/online.py
	$(BIN)/python perf/growth.py
	$(BIN)/python perf/shared_machine.py
	$(BIN)/python perf/safety.py
	$(BIN)/python perf/reports.py
	$(BIN)/python perf/predicting.py
	$(BIN)/python perf/scaling.py
	$(BIN)/python perf/grids.py
	$(BIN)/python perf/peers.py

clean:
	rm -rf .venv .venv-avalanche runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
