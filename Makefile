# Two commands: `make workbook` and `make test`. `make help` lists the others.
#
# Python 3.11, 3.12 or 3.13, pip and make are needed; the rest goes to .venv, at the versions of
# requirements/lock.txt. The environment is made anew when the lock changes or the folder moves,
# and after an installation that did not finish: only a finished one leaves its stamp.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
LOCK := requirements/lock.txt
# The tools of `make book` and `make test-browser`, which nothing else needs: installed when asked for.
TOOLS := book browser
RUN := $(VENV)/bin/python
PROFILE := cpu
ARGS :=

# Which Python makes the environment; `make PYTHON=/path/to/python3.12 ...` to choose.
PYTHON :=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python)
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

stamp = $(VENV)/$(1)-$(shell cat requirements/$(1).txt | cksum | tr -cs '0-9\n' '-')
STAMP := $(VENV)/complete-$(shell { cat $(LOCK); pwd; } | cksum | tr -cs '0-9\n' '-')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Let glibc keep the memory of large tensors instead of handing it back to the system after each
# layer: on two cores SAM's image embedding then takes a third less time, for some 0.4 GB.
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 1073741824
export MALLOC_TOP_PAD_ := 67108864

# Tests run in this many processes of one thread each.
WORKERS := 2

.PHONY: help workbook test test-slow test-browser check lab book data evaluate benchmark embedded readme lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

workbook: $(STAMP) ## run every notebook; ARGS="--only 04 --set STEPS=50", PROFILE=gpu
	@$(RUN) -m t4s_helpers weights mobile_sam
	@$(RUN) -m t4s_helpers notebooks --appendix --profile $(PROFILE) $(ARGS)

test: $(STAMP) ## run the tests, without the slow ones; ARGS="-k codec"
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(STAMP) ## run the slow tests: kills, several processes, every model family end to end
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m slow $(ARGS)

test-browser: $(call stamp,browser) ## drive the notebooks' widgets in JupyterLab and headless Chromium
	@$(RUN) tests/browser/chromium.py
	@OMP_NUM_THREADS=2 $(RUN) -m pytest -q -m browser $(ARGS) tests/browser

check: $(STAMP) ## lint the code and its layout, and check the types of the public doors
	@$(RUN) -m ruff check t4s_helpers tests notebooks book
	@$(RUN) -m mypy

lab: $(STAMP) ## open JupyterLab
	@$(RUN) -m jupyterlab $(ARGS)

book: $(call stamp,book) ## a static site of the executed series: build/book/index.html
	@mkdir -p build/book-source
	@$(RUN) -m sphinx -c book -b html -j auto -W --keep-going -q build/book-source build/book
	@$(RUN) book/check.py build/book
	@echo "Open build/book/index.html."

data: $(STAMP) ## data sets that can be read; ARGS="refcoco --root /data" checks one's files
	@$(RUN) -m t4s_helpers data $(ARGS)

evaluate: $(STAMP) ## answer and score samples; ARGS="run OUT --adapter scenes", ARGS="tables OUT"
	@$(RUN) -m t4s_helpers evaluate $(ARGS)

BENCHMARKS := data decoding refine

benchmark: $(STAMP) ## time reading, decoding and refining; BENCHMARKS=data for one
	@set -e; for name in $(BENCHMARKS); do $(RUN) -m t4s_helpers.lab.benchmarks.$$name $(ARGS); done

# One training at a time, and nothing else beside it: two bound processes would share their cores.
EMBEDDED := checkpoints/embedded
ASSETS := t4s_helpers/assets
embedded: export OMP_PROC_BIND := true
embedded: export OMP_PLACES := cores
embedded: $(STAMP) ## train the embedded model anew, some 3.5 hours on 2 cores; goes on where it was stopped
	@$(RUN) -m t4s_helpers.lab.tiny_model.tower --out $(EMBEDDED)/tower
	@$(RUN) -m t4s_helpers.lab.tiny_model.base --tower $(EMBEDDED)/tower --out $(EMBEDDED)/base
	@$(RUN) -m t4s_helpers train --source $(EMBEDDED)/base/final --quantize none --batch 8 \
	  --samples 12000 --log-every 25 --out $(EMBEDDED)/scenes --export $(ASSETS)/adapters/scenes
	@cp $(EMBEDDED)/base/final/* $(ASSETS)/embedded/
	@for name in tower base scenes; do cp $(EMBEDDED)/$$name/log.csv $(ASSETS)/logs/$$name.csv; done
	@cp $(EMBEDDED)/base/skills.csv $(ASSETS)/logs/base_skills.csv

readme: $(STAMP) ## bring tables, minutes and links in README and notebooks up to date
	@$(RUN) -m t4s_helpers notebooks --readme

$(STAMP): $(LOCK)
	@set -e; python=""; \
	for candidate in $(CANDIDATES); do \
	  if $$candidate -c '$(SUITABLE)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed, and none of these is one: $(CANDIDATES)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$python and the versions of $(LOCK): some minutes, once."; \
	rm -rf $(VENV); \
	if $$python -c 'import ensurepip' 2>/dev/null; then \
	  $$python -m venv $(VENV); install="$(RUN) -m pip install"; \
	else \
	  $$python -m venv --without-pip $(VENV); \
	  install="$$python -m pip --python $(RUN) install"; \
	fi; \
	if [ -t 1 ]; then quiet=""; else quiet="--quiet --progress-bar off"; fi; \
	$$install $$quiet -r $(LOCK); \
	$$install --quiet --no-deps --no-build-isolation -e .; \
	touch $@

# An extra's tools, beside the locked packages, of which none is changed.
$(foreach tool,$(TOOLS),$(call stamp,$(tool))): $(VENV)/%: $(STAMP)
	@name=$(firstword $(subst -, ,$(@F))); echo "Installing the packages of requirements/$$name.txt."; \
	if $(RUN) -c 'import pip' 2>/dev/null; then install="$(RUN) -m pip install"; \
	else install="$(firstword $(CANDIDATES)) -m pip --python $(RUN) install"; fi; \
	$$install --quiet --progress-bar off -r requirements/$$name.txt -c $(LOCK)
	@touch $@

lock: ## write requirements/*.txt from pyproject.toml; ARGS=--upgrade for the newest versions
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(firstword $(CANDIDATES)) -m venv "$$place"; "$$place/bin/python" -m pip install --quiet uv; \
	compile() { "$$place/bin/uv" pip compile --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock" --quiet "$$@"; }; \
	compile pyproject.toml --extra workbook --extra test --output-file $(LOCK) $(ARGS); \
	for tool in $(TOOLS); do \
	  cp requirements/$$tool.txt "$$place/tool.txt" 2>/dev/null || true; \
	  compile pyproject.toml --extra $$tool --constraint $(LOCK) --output-file "$$place/tool.txt" $(ARGS); \
	  grep -vxFf $(LOCK) "$$place/tool.txt" > requirements/$$tool.txt; \
	done; \
	for version in 3.11 3.12 3.13; do \
	  "$$place/bin/uv" pip compile $(LOCK) --python-version $$version --no-header --quiet \
	    --output-file "$$place/$$version.txt"; \
	  echo "Python $$version: $$(grep -c == "$$place/$$version.txt") packages"; \
	done

clean: ## remove the environment and everything else that make can make again; results stay
	@rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .mypy_cache build *.egg-info \
	  results/solutions results/.staging results/.failed results/*/.staging results/*/.failed
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
