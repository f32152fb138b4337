# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Large tensors cost page faults with the default allocator: keep freed memory instead of giving it back.
export MALLOC_MMAP_THRESHOLD_ ?= 4000000000
export MALLOC_TRIM_THRESHOLD_ ?= 8000000000
export MALLOC_TOP_PAD_ ?= 500000000
# Nothing is downloaded or reported at run time.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo reproduce bench test test-slow lint format help-texts base base-liquid judge clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

install: $(STAMP)  ## .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rewind needs Python 3.11 or newer: set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the whole story on the tabletop world, into runs/demo (5 to 7 minutes on 2 cores, up to 12 where others use them)
	$(BIN)/python scripts/demo.py --output runs/demo --resume

reproduce: $(STAMP)  ## the same with larger budgets and seeds 0, 1, 2 (one to two hours of one core a seed; finished ones are reused); writes docs/results.md
	$(BIN)/python scripts/reproduce.py --output runs/reproduce --results docs/results

bench: $(STAMP)  ## speed and memory against committed baselines, into runs/bench/bench.json; after make demo also passes of reranking
	$(BIN)/python scripts/bench.py --preset full $(if $(wildcard runs/demo/results.json),--fdm runs/demo/sft) --output runs/bench

# A worker a core, each in one thread; files stay whole, since their fixtures take longer than their tests.
WORKERS ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

test: $(STAMP)  ## the test-suite, on up to four cores (WORKERS=0: in one process)
	$(PYTEST) -m 'not slow'

test-slow: $(STAMP)  ## the tests marked slow too
	$(PYTEST)

lint: $(STAMP)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

help-texts: $(STAMP)  ## what --help of the training scripts prints, after a change of their arguments
	$(BIN)/python -m trainers.common.help

base: $(STAMP)  ## train the shipped base again, into runs/base-4 (about 4 hours on 2 cores, as its logs show)
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop.yaml --output runs/base
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_2.yaml --base runs/base --output runs/base-2
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_3.yaml --base runs/base-2 --output runs/base-3
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_4.yaml --base runs/base-3 --output runs/base-4

base-liquid: $(STAMP)  ## a base of Liquid's kind with the shipped VQ tokenizer, into runs/liquid-4 (for reproduce.py --base)
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop.yaml --family liquid --tokenizer_from tabletop-chameleon --tokenizer_steps 0 --merge_codes 0 --output runs/liquid
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_2.yaml --base runs/liquid --output runs/liquid-2
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_3.yaml --base runs/liquid-2 --output runs/liquid-3
	$(BIN)/python scripts/pretrain_base.py --config configs/pretrain_tabletop_4.yaml --base runs/liquid-3 --output runs/liquid-4

judge: $(STAMP)  ## train the shipped judge IDM again, into runs/judge
	$(BIN)/python scripts/make_world.py --split train --num_triplets 4000 --num_videos 0 --seed 1000003 --output runs/judge-world
	$(BIN)/python scripts/train_idm.py --config configs/judge_tabletop.yaml --triplets runs/judge-world/triplets.json --output_dir runs/judge

clean:  ## remove the environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
