# Every target says what it does: `make help`.
PYTHON ?= python3
FAMILY ?= tipsy
ARGS ?=
VENV := .venv
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install sweep dashboard test lint format table faults cluster cluster-sweep cluster-check slurm clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install Pharos and all that it uses

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[tune,deepspeed,s3,postgresql,wandb,report,pose,vision,jets,dashboard,dev]'
	@touch $@

sweep: $(INSTALLED) ## search FAMILY (tipsy) on the embedded default; ARGS pass through: make sweep ARGS='trials=8 seed=1'
	$(VENV)/bin/python platform/sweep.py --family $(FAMILY) $(ARGS)

dashboard: $(INSTALLED) ## Optuna's dashboard on SWEEP, at http://127.0.0.1:8080 (another port: ARGS='--port 8081')
	$(VENV)/bin/python platform/dashboard.py $(SWEEP) $(ARGS)

test: $(INSTALLED) ## run the tests; some of them: make test ARGS='tests/pharos -k space'
ifeq ($(ARGS),)
	$(VENV)/bin/python -m pytest -m 'not alone' --numprocesses 2 --dist loadgroup
	$(VENV)/bin/python -m pytest -m alone
else
	$(VENV)/bin/python -m pytest $(ARGS)
endif

lint: $(INSTALLED) ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED) ## put the code into its usual form
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

table: $(INSTALLED) ## train what trainables/$(FAMILY)/README.md shows as a table, and print it
	$(VENV)/bin/python benchmarks/$(FAMILY)_claims.py $(ARGS)

faults: $(INSTALLED) ## break sweeps on purpose and say what became of them; some: make faults ARGS='--only trial-killed'
	PATH=$(abspath $(VENV))/bin:$$PATH PYTHONPATH=platform:. $(VENV)/bin/python -m benchmarks.faults $(ARGS)

NODES ?= 3
cluster: $(INSTALLED) ## a Ray cluster of NODES (3) nodes on this machine, to try things on; Ctrl-C ends it
	PATH=$(abspath $(VENV))/bin:$$PATH cluster/local.sh $(NODES)

cluster-sweep: $(INSTALLED) ## submit, stop and resume a sweep on three machines in network namespaces (Linux, root, iproute2); 2 minutes
	PATH=$(abspath $(VENV))/bin:$$PATH PYTHONPATH=platform:. $(VENV)/bin/python -m benchmarks.faults.submitted

cluster-check: $(INSTALLED) ## hold cluster/kuberay/rayjob.yaml to KubeRay's CRD: CRD=ray.io_rayjobs.yaml, of its release
	CRD=$(CRD) $(VENV)/bin/python -m pytest tests/cluster

slurm: $(INSTALLED) ## try cluster/slurm/sweep.sbatch on a Slurm of its own (needs root, slurm-wlm and munge); 6 minutes
	PATH=$(abspath $(VENV))/bin:$$PATH cluster/slurm/try.sh

clean: ## remove .venv and caches; sweeps stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
