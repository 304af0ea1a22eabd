# Everything a person does with this project. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SITE   := _build/html
PORT   ?= 8000
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Threads that wait passively do not starve the other page that is being executed.
export OMP_WAIT_POLICY := PASSIVE
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# What pip says, less the lines about packages that are there already.
NEWS := { grep -v 'already satisfied' || true; }

.PHONY: help setup sync site book page test serve export vocabulary pretrain pictures lint peers bench screenshot clean
help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## make the environment that every other command uses

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	@echo "== environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing PyTorch, the largest package"
	@$(BIN)/python -m pip install -c constraints.txt torch | $(NEWS)
	@echo "== installing the library and the tools that build and test the book"
	@$(BIN)/python -m pip install -c constraints.txt -e '.[book,test]' | $(NEWS)
	@touch $@

export: setup  ## write the library from the notebooks, and clean the notebooks
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@echo "The library in llm_literate/ follows the notebooks. Next: make test"

sync: setup
	@$(BIN)/python -m pytest -q tests/test_house.py -k in_sync -p no:cacheprovider

book: sync  ## execute every page that changed and build the site
	@$(MAKE) --no-print-directory site
	@echo "The book lies in $(SITE)/index.html. Open that file, or run: make serve"

site:
	@echo "== building the book"
	@$(BIN)/jupyter-book build . -W --keep-going --builder html

# The other pages are left out, so links to them cannot be followed; only a failing cell stops this.
page: setup  ## execute and build one page: make page PAGE=02a_tokenizer
	@test -f nbs/$(PAGE).ipynb || { echo "name a page: make page PAGE=02a_tokenizer"; exit 1; }
	@mkdir -p _build/page && rm -rf _build/page/_build/html/reports
	@printf 'format: jb-book\nroot: nbs/%s\n' $(PAGE) > _build/page/toc.yml
	@$(BIN)/jupyter-book build . --toc _build/page/toc.yml --path-output _build/page --quiet 2> _build/page/log || true
	@report=_build/page/_build/html/reports/nbs/$(PAGE).err.log; ! test -f $$report || { cat $$report; exit 1; }
	@echo "The page lies in _build/page/_build/html/nbs/$(PAGE).html"

serve: setup  ## serve the built site on this machine
	@test -f $(SITE)/index.html || $(MAKE) --no-print-directory book
	@echo "The book is at http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

lint: setup  ## ruff on notebooks and tests
	@$(BIN)/ruff check .

test: lint book  ## everything that passes or fails
	@echo "== tests"
	@$(BIN)/python -m pytest

vocabulary: setup  ## train the shipped vocabulary again
	@$(BIN)/python -c 'from llm_literate import small_world, tokenizer; tokenizer.BPETokenizer.train(small_world.corpus(), 2048).save("llm_literate/assets/small_tokenizer.json")'

# Memory that is kept for the next step need not be asked for again (glibc).
pretrain: export MALLOC_TOP_PAD_ := 268435456
pretrain: export MALLOC_TRIM_THRESHOLD_ := 17179869184
pretrain: setup  ## train the model that ships once more (an hour or more)
	@$(BIN)/python -m llm_literate.pretrain --folder runs/small
	@$(BIN)/python -m llm_literate.pretrain --folder runs/one_layer --layers 1
	@cp runs/small/small_model.* llm_literate/assets/
	@cp runs/one_layer/small_model.json llm_literate/assets/one_layer.json

pictures: setup  ## draw the logo and the other stored pictures again
	@$(BIN)/python -c 'from llm_literate import figures; figures.write_assets()'

# Without what they need for other things, which would replace the tested versions.
peers: setup  ## install the libraries that bench compares with
	@$(BIN)/python -m pip install --no-deps llms-from-scratch==1.0.19 litgpt==0.5.13 lightning==2.6.6 \
	  lightning-utilities==0.15.3 torchmetrics==1.9.0 jsonargparse==4.53.0 | $(NEWS)

bench: setup  ## time our code beside its peers, in one run
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

screenshot: book  ## draw the README's picture of the site
	@chromium --headless --no-sandbox --hide-scrollbars --window-size=1280,820 --virtual-time-budget=4000 \
	  --screenshot=$(CURDIR)/nbs/_static/screenshot.png file://$(CURDIR)/$(SITE)/nbs/03a_self_attention.html

clean:  ## remove what was built; the environment stays
	@rm -rf _build dist build *.egg-info
