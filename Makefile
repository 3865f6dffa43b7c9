# The commands of the template. Each makes the environment first; Python 3.10+ and make are enough.
# VENV names another environment, PYTHON the interpreter that makes it, ARGS what pytest or the
# benchmark gets, OLDEST a Python 3.10 and OLDEST_VENV its environment.

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
OLDEST ?= python3.10
OLDEST_VENV ?= .venv-oldest

# Exported, so that a shell takes them as they are, whatever characters the path has.
export PY := $(abspath $(VENV))/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
export OLD_PY := $(abspath $(OLDEST_VENV))/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo
BENCH_INSTALLED := $(VENV)/.installed-benchmarks
PROJECT := {{cookiecutter.project_slug}}
INSTALL := '$(PROJECT)/tools/install.py'
DEMO := demo/my_vision_project
# Whole files of tests in two processes, in their order; each test computes with one thread, unless
# OMP_NUM_THREADS is set. Empty, it leaves the number to PyTorch.
OMP_NUM_THREADS ?= 1
PYTEST := OMP_NUM_THREADS=$(OMP_NUM_THREADS) "$$PY" -m pytest
TWO := -n 2 --dist loadfile --no-loadscope-reorder
# What the demo needs: cookiecutter, and what a project runs with, from the index of one that was made
# without a driver. What only checks need comes with `make test`.
RUNS_WITH = sed -e '/^\# What its checks need/,$$d' -e 's/^\#! \([^{]*\).*/\1  \# auto: cpu/' \
	'$(PROJECT)'/requirements.txt && grep '^cookiecutter' requirements.txt

.PHONY: help demo test stress bench oldest lint clean gpu

help:  ## shows this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1: /p' Makefile

demo: $(DEMO_INSTALLED)  ## makes a project in demo/, trains it and tests it
	rm -rf demo
	find '$(PROJECT)' -name '*_cache' -prune -exec rm -rf {} +
	"$$PY" -m cookiecutter --no-input --default-config --output-dir demo .
	cd $(DEMO) && "$$PY" train.py --run-dir runs/demo
	cd $(DEMO) && "$$PY" test.py --checkpoint runs/demo/checkpoints/best.pt
	@echo "The pictures are in $(DEMO)/runs/demo/report/"

test: $(INSTALLED)  ## runs every check and every test; test_lint.py is `make lint`
	$(PYTEST) $(TWO) $(ARGS)

stress: $(INSTALLED)  ## many more faults and answers than `make test`, and three seeds
	$(PYTEST) --full $(TWO) --durations=20 --durations-min=20 $(ARGS)

bench: $(BENCH_INSTALLED)  ## measures speed against others and the limit; ARGS="--help" says more
	"$$PY" -m benchmarks $(ARGS)

oldest:  ## makes a project and runs its tests with the oldest versions that are allowed
	rm -rf $(OLDEST_VENV)/project
	test -x "$$OLD_PY" || $(OLDEST) -m venv $(OLDEST_VENV)
	sed -n 's/^\([A-Za-z0-9_-]*\)>=\([0-9.]*\).*/\1==\2/p' requirements.txt '$(PROJECT)'/requirements.txt \
		> $(OLDEST_VENV)/constraints.txt
	{ $(RUNS_WITH); } > $(OLDEST_VENV)/demo.txt
	"$$OLD_PY" $(INSTALL) -r $(OLDEST_VENV)/demo.txt -c $(OLDEST_VENV)/constraints.txt
	"$$OLD_PY" -m pip install -r requirements.txt -c $(OLDEST_VENV)/constraints.txt
	find '$(PROJECT)' -name '*_cache' -prune -exec rm -rf {} +
	"$$OLD_PY" -m cookiecutter --no-input --default-config -o $(OLDEST_VENV)/project .
	cd $(OLDEST_VENV)/project/my_vision_project && "$$OLD_PY" -m pytest $(ARGS)

lint: $(INSTALLED)  ## checks style and types, of the template and of its projects
	"$$PY" -m ruff check --config pyproject.toml .
	set -e; copy=.mypy_cache/project; for task in '$(PROJECT)'/tasks/*; do \
		rm -rf "$$copy"; mkdir -p "$$copy"; \
		cp -Rp '$(PROJECT)'/. "$$copy"; rm -r "$$copy/tasks"; cp -Rp "$$task"/. "$$copy"; \
		mkdir "$$copy/tests/engine"; \
		cp -p tests/engine/*.py tests/engine/"$${task##*/}"/*.py "$$copy/tests/engine"; \
		(cd "$$copy" && exec "$$PY" -m mypy --config-file ../../pyproject.toml --cache-dir .. .); \
	done
	"$$PY" -m mypy --exclude "^tests/(engine|contracts)/" pt_template_answers.py tests benchmarks

clean:  ## removes the environment, the demo and the caches
	rm -rf .venv .venv-oldest demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find '$(PROJECT)' -name '*_cache' -prune -exec rm -rf {} +

gpu: $(INSTALLED)  ## checks and measures on this machine's GPU, in 8 minutes; writes gpu-results/
	@"$$PY" -m benchmarks.gpu $(ARGS)

$(DEMO_INSTALLED): requirements.txt $(PROJECT)/requirements.txt
	@test -x "$$PY" || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	test -x "$$PY" || $(PYTHON) -m venv $(VENV)
	{ $(RUNS_WITH); } > $(VENV)/demo.txt
	"$$PY" $(INSTALL) -r $(VENV)/demo.txt
	@touch $@

$(INSTALLED): $(DEMO_INSTALLED)
	"$$PY" -m pip install -r requirements.txt
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED) benchmarks/requirements.txt
	"$$PY" -m pip install -r benchmarks/requirements.txt
	@touch $@
