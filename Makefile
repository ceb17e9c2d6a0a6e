# Every target sets itself up first, once, in .venv/. Name another Python by `make PYTHON=... test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# One stamp per Python that was asked for, so that another one makes the environment anew.
READY := $(VENV)/ready$(subst /,-,$(PYTHON))
# Test processes, at most, each of which compiles and runs kernels of its own.
PROCESSES ?= 4
# Triton, which the tests take where it can be had.
TRITON := $(VENV)/ready-triton
# The libraries that the benchmarks measure beside ours.
PEERS := $(VENV)/ready-peers
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMAT = $(PY) -c 'import clang_format; clang_format.clang_format()'

.PHONY: help demo test reproduce triton-matrix bench bench-compare bench-quick bench-networks bench-training \
  gpu lint format sanitize clean distclean

help:
	@echo 'make demo         train, draw and time on real digits; leaves out/demo/'
	@echo 'make test         the tests and every example in the documentation'
	@echo 'make triton-matrix  every Triton kernel, interpreted and compiled, with no GPU; an hour'
	@echo 'make bench        the benchmarks, ten minutes; make bench-quick for a first look'
	@echo 'make bench-compare BASE=HEAD~1  is this slower than a commit, beyond noise?'
	@echo 'make reproduce    domain adaptation over five seeds; leaves reproductions/results/'
	@echo 'make gpu          on a machine with one: build, tests, compute-sanitizer, benchmarks'
	@echo 'make bench-networks  whole networks against captum and zennit, beside the figures of make bench'
	@echo 'make bench-training  steps of training against the peers, beside the figures of make bench'
	@echo 'make lint         ruff, clang-format and mypy; make format mends the layout'
	@echo 'make sanitize     the native kernels under AddressSanitizer and UBSan'
	@echo 'make clean        remove what was built; make distclean removes .venv too'

$(READY): setup.py pyproject.toml .ci/environment.py $(CXX_FILES)
	$(PYTHON) .ci/environment.py $(VENV)
	@rm -f $(VENV)/ready*
	@touch $@

demo: $(READY)
	$(PY) -m pyrevgrad demo $(ARGUMENTS)

$(TRITON): $(READY) .ci/triton_for_tests.py
	$(PY) .ci/triton_for_tests.py
	@touch $@

test: $(READY) $(TRITON)
	$(PY) -m pytest -n auto --maxprocesses $(PROCESSES) --dist worksteal \
	  --doctest-modules --doctest-glob='*.md' \
	  tests pyrevgrad $(wildcard *.md docs/*.md) $(ARGUMENTS)

reproduce: $(READY)
	$(PY) -m reproductions $(ARGUMENTS)

# The interpreter serves a process or does not, so there are two.
triton-matrix: $(READY) $(TRITON)
	$(PY) -c 'import triton'
	TRITON_INTERPRET=1 $(PY) -m pytest -k "(triton or interpreted) and not one_at_a_time" tests/test_kernels.py tests/test_layouts.py \
	  tests/test_inplace.py tests/test_autograd.py tests/interpreted.py tests/interpreted_bounds.py $(ARGUMENTS)
	PYREVGRAD_EVERY_KERNEL=1 $(PY) -m pytest tests/test_triton_compiled.py tests/test_triton_ptx.py $(ARGUMENTS)

$(PEERS): $(READY) .ci/peers_for_bench.py
	$(PY) .ci/peers_for_bench.py
	@touch $@

bench: $(READY) $(PEERS)
	$(PY) -m bench $(ARGUMENTS)

bench-quick: $(READY) $(PEERS)
	$(PY) -m bench --quick $(ARGUMENTS)

bench-compare: $(READY)
	@test -n "$(BASE)" || { echo 'name a commit: make bench-compare BASE=HEAD~1' >&2; exit 2; }
	$(PY) -m bench.compare "$(BASE)" $(if $(NEW),--new "$(NEW)") $(if $(NAME),--record "$(NAME)") $(ARGUMENTS)

# Under the Python that has torch with CUDA, which gets nothing installed.
gpu:
	$(PYTHON) .ci/gpu.py $(ARGUMENTS)

bench-networks: $(READY) $(PEERS)
	$(PY) -m bench.networks $(ARGUMENTS)

bench-training: $(READY) $(PEERS)
	$(PY) -m bench.training $(ARGUMENTS)

lint: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES) bench/driver.cpp
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(CLANG_FORMAT) -i $(CXX_FILES) bench/driver.cpp

sanitize: $(READY)
	PYTHON=$(PY) .ci/sanitize $(ARGUMENTS)

clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f pyrevgrad/_*.so pyrevgrad/_build_report*.txt pyrevgrad/_autograd*.txt $(VENV)/ready*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
