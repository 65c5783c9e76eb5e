# make setup   builds .venv (nothing is redone while pyproject.toml, TORCH, AUTO_LIRPA stay as they are)
# make demo    trains, certifies and draws demo.png
# make test    runs the tests;  make test AUTO_LIRPA=<pip requirement or path>  runs them on another auto_LiRPA
# make fuzz    N random models, regions and settings against independent oracles (make fuzz N=10000 SEED=1)
# make lirpa-tests LIRPA=<checkout>   runs auto_LiRPA's own tests with its class and with ours, and explains differences
# make lint    ruff and mypy
# make docs    builds the site in docs/_build/html; a warning is an error
# make smoke   builds wheel and sdist and tries the wheel outside the checkout
# make test-pythons   runs the tests on every Python 3.10 … 3.14 at hand;  PYTHONS="3.12 3.13" chooses
# make bench   measures everything that benchmarks/README.md lists: many hours;  BENCHMARKS="imports norms" chooses
# make clean   removes .venv and caches

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
AUTO_LIRPA ?= auto_LiRPA==0.3
N ?= 1000
SEED ?= 0
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
# The scripts of benchmarks/README.md's table, in its order; a test compares the two.
BENCHMARKS ?= verify branching sdp_crown clarke smooth_jacobian deep_lipschitz norms memory imports rounding scale \
    products radius_search certify_cost train_step train_estimates train_cpu pretrained

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
# Every later installation is held to the torch that is there: nothing may swap a CPU build for a CUDA one.
CONSTRAINTS := $(VENV)/constraints.txt

# A stamp's name holds a checksum of the requirement: another value is another file, so that make sees the change.
stamp = $(VENV)/.$(1)-$(firstword $(shell printf '%s' '$(2)' | cksum))
TORCH_STAMP := $(call stamp,torch,$(TORCH))
LIRPA_STAMP := $(call stamp,auto_lirpa,$(AUTO_LIRPA))
DEPS_STAMP := $(VENV)/.dependencies

# Threads of one process gain little on small networks, and the test workers would fight over the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test fuzz lirpa-tests lint docs smoke test-pythons bench clean
setup: $(LIRPA_STAMP) $(DEPS_STAMP)

$(PY):
	@$(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): | $(PY)
	@echo "installing $(TORCH)"
	@rm -f $(VENV)/.torch-* $(DEPS_STAMP)
	@$(PIP) install '$(TORCH)' numpy
	@$(PY) -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(CONSTRAINTS)
	@touch $@

# --no-deps: auto_LiRPA declares a torch older than the one it runs on here.
$(LIRPA_STAMP): $(TORCH_STAMP)
	@echo "installing $(AUTO_LIRPA)"
	@rm -f $(VENV)/.auto_lirpa-*
	@$(PIP) install --no-deps --force-reinstall '$(AUTO_LIRPA)'
	@touch $@

# pip would report in red, at every installation, that torch is newer than auto_LiRPA declares. That is meant to be and
# not shown; `pip check` looks afterwards, and anything else that does not fit is shown and stops the setup.
# A CUDA build of torch brings its own triton; a CPU build has none, and there the kernels run in its interpreter.
# Where no wheel of it exists, only the kernel tests are skipped.
$(DEPS_STAMP): pyproject.toml setup.py $(TORCH_STAMP) | $(LIRPA_STAMP)
	@echo "installing lirpa_lip and what it needs"
	@$(PIP) install --no-warn-conflicts -c $(CONSTRAINTS) -e '.[dev]'
	@$(PY) -c "import triton" 2>/dev/null || $(PIP) install --no-deps triton || echo "triton is not available here"
	@! $(PY) -m pip --disable-pip-version-check check | grep -vi -e '^auto.lirpa ' -e '^No broken requirements'
	@echo "(auto_LiRPA declares older versions of torch than it runs on here: lirpa_lip/autolirpa/compat.py fills the gaps)"
	@touch $@

demo: setup
	$(PY) examples/demo.py

test: setup
	$(PY) -m pytest $(PYTEST_ARGS)

fuzz: setup
	cd tests && $(abspath $(PY)) -m fuzz $(N) --seed $(SEED)

lirpa-tests: setup
	@test -n "$(LIRPA)" || { echo "make lirpa-tests LIRPA=<checkout of auto_LiRPA>"; exit 2; }
	$(PY) tests/tools/lirpa_suite.py '$(LIRPA)'

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy

# What the site needs is installed here, so that `make setup` stays quick.
docs: setup
	@$(PIP) install --no-warn-conflicts -c $(CONSTRAINTS) -e '.[docs]'
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

smoke: setup
	$(PY) tests/package/smoke.py

test-pythons:
	PYTEST_ARGS='$(PYTEST_ARGS)' bash tests/package/pythons.sh $(PYTHONS)

# Each with the options that it has by default; one that fails (no data at hand) does not keep the others from running.
bench: setup
	@failed=; for name in $(BENCHMARKS); do \
	    echo "== benchmarks/$$name.py"; $(PY) benchmarks/$$name.py || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "not measured:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) .venv-3.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
