# Every target sets up .venv by itself; after that, `make` adds no time. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
# What `make demo` trains: flags of fit.
DEMO ?= --config configs/digits.yaml
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
STAMP := .venv/installed

.PHONY: demo test lint format
.DEFAULT_GOAL := demo

demo: $(STAMP)  ## train, test and export
	$(BIN)/lit-guide fit $(DEMO)

# Two at a time, on a thread each. # template only
test: export PYTEST_ADDOPTS := --numprocesses 2 --dist loadfile # template only
test: export OMP_NUM_THREADS := 1 # template only
test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)  ## style, types and who imports whom; nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest --quiet --noconftest tests/test_house.py # template only

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# template only:
.PHONY: bench docs new test-slow
# Most of them wait for processes to start: two at a time, on a thread each, take little more than half the time.
test-slow: export OMP_NUM_THREADS := 1
test-slow: $(STAMP)  ## the others
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

# Where `make new` puts the new project.
OUT ?= ..
new: $(STAMP)  ## ask a few questions, then make a project of your own from this one
	$(BIN)/cookiecutter "$(CURDIR)" --output-dir "$(OUT)"

docs: $(STAMP)  ## build the guide; warnings are errors
	$(BIN)/python docs/build.py

bench: $(STAMP)  ## measure the claims of benchmarks/README.md; minutes, on a quiet machine
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/digits_accuracy.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/folder_pipeline.py
	$(BIN)/python benchmarks/data_check.py
	$(BIN)/python benchmarks/known_set.py
	$(BIN)/python benchmarks/photo_task.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/cpu_precision.py
	$(BIN)/python benchmarks/resume_cost.py
	$(BIN)/python benchmarks/guide.py
	$(BIN)/python benchmarks/big_photos.py
	$(BIN)/python benchmarks/busy_cores.py
	command -v nvidia-smi > /dev/null || exit 0; $(BIN)/python benchmarks/gpu_step.py && $(BIN)/python benchmarks/gpu_small.py

# With any Python that has a GPU build of torch: no .venv, nothing is installed. EXTRA: a folder with what that Python lacks.
.PHONY: test-gpu bench-gpu gpu-extra
DEVICE ?= cuda
EXTRA ?= .gpu-extra
test-gpu bench-gpu: export PYTHONPATH := $(CURDIR):$(abspath $(EXTRA)):$(PYTHONPATH)
# Where records go: OUT, if it is not the one of `make new`.
test-gpu bench-gpu: export RECORDS := $(if $(filter file,$(origin OUT)),,$(abspath $(OUT)))
test-gpu:  ## what only a GPU can show, in five minutes; DEVICE=cpu rehearses it
	@$(PYTHON) -m tests.gpu --device $(DEVICE)

bench-gpu:  ## the claims about a GPU, in five minutes; DEVICE=cpu tries the scripts
	@$(PYTHON) benchmarks/gpu.py --device $(DEVICE)

# Wheels of pure Python alone: they run on any machine. Those with compiled parts have to be there.
gpu-extra:  ## fill EXTRA with what a Python with torch, Lightning and ONNX Runtime may lack
	$(PYTHON) -m pip install --quiet --upgrade --target "$(EXTRA)" --no-deps --no-compile --constraint constraints.txt \
		--only-binary :all: --python-version 3.12 --implementation py --abi none --platform any \
		jsonargparse docstring_parser typeshed_client rich markdown-it-py mdurl pygments onnxscript onnx-ir
# end

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -c "import pathlib; pathlib.Path('$(STAMP)').touch()"
