# Everything a person does with this project. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SITE   := _build/html
PORT   ?= 8000
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Threads that wait passively do not starve the other page that is being executed.
export OMP_WAIT_POLICY := PASSIVE
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# What pip says, less the lines about packages that are there already.
NEWS := { grep -v 'already satisfied' || true; }

# What needs no built page, and therefore comes first.
FORM := tests/test_house.py tests/test_workflows.py
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
# One of Jupyter Book's packages reads a grammar of web addresses for a second, and nothing here asks it anything.
BOOK := $(BIN)/python -c 'import sys; sys.modules["rfc3987_syntax"] = None; from jupyter_book.cli.main import main; main()'
BROWSER ?= $(firstword $(shell command -v chromium chromium-browser google-chrome))

define NEAREST
import difflib, pathlib, sys
wanted = sys.argv[1]
pages = sorted(path.stem for path in pathlib.Path("nbs").glob("*") if path.suffix in (".ipynb", ".md"))
near = difflib.get_close_matches(wanted, pages, n=3, cutoff=0.3)
near += [page for page in pages if wanted and page.startswith(wanted[:2]) and page not in near]
what = f"There is no page {wanted!r}." if wanted else "Which page?"
print(what, "Try:", *[f"make page PAGE={page}" for page in (near or ["02a_tokenizer"])], sep="\n  ", file=sys.stderr)
sys.exit(1)
endef
export NEAREST

.NOTPARALLEL:
.PHONY: help setup sync house site book page pdf test serve export hook precommit vocabulary pretrain pictures lint peers \
  bench screenshot clean
help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## make the environment that every other command uses
	@case " $(MAKECMDGOALS) " in *" setup "*) echo "The environment is ready. Next: make book, or $(BIN)/jupyter lab nbs";; esac

# An environment that is only linked to belongs to another copy of the project, so nothing is installed into it.
# nbdev writes pyproject.toml at each export, so what counts is what stands in it, and not when it was written.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test ! -L $(VENV) || { echo "$(VENV) is a link: the environment is used as it is"; exit 0; }; \
	wanted=$$(cat $^ | cksum); if [ "$$(cat $@ 2>/dev/null)" = "$$wanted" ]; then touch $@; exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'; \
	echo "== environment in $(VENV)"; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	echo "== installing PyTorch, the largest package"; \
	$(BIN)/python -m pip install -c constraints.txt torch | $(NEWS); \
	echo "== installing the library and the tools that build and test the book"; \
	$(BIN)/python -m pip install -c constraints.txt -e '.[book,test]' | $(NEWS); \
	echo "$$wanted" > $@

export: setup  ## write the library from the notebooks, and clean the notebooks
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@test ! -f llm_literate/scripts.py || $(BIN)/python -m llm_literate.scripts
	@echo "The library in llm_literate/ follows the notebooks. Next: make page PAGE=the page you changed, then make test"

hook: setup  ## let git run `make export` before each commit
	@hook="$$(git rev-parse --git-path hooks)/pre-commit"; \
	if [ -e "$$hook" ] && ! grep -q 'make -s precommit' "$$hook"; then \
	  echo "$$hook exists already. Next: add this line to it: make -s precommit"; exit 1; fi; \
	mkdir -p "$$(dirname "$$hook")"; printf '#!/bin/sh\nexec make -s precommit\n' > "$$hook"; chmod +x "$$hook"; \
	echo "Each commit now exports the notebooks first. To be rid of it: rm $$hook"

precommit:
	@notebooks=$$(git diff --cached --name-only --diff-filter=d -- 'nbs/*.ipynb'); test -n "$$notebooks" || exit 0; \
	$(MAKE) -s export > /dev/null; \
	made="$$(sed -n 's/.*"#| default_exp \([a-z_]*\).*/llm_literate\/\1.py/p' $$notebooks) llm_literate/_modidx.py"; \
	left=$$(git diff --name-only -- $$notebooks $$made 'nbs/_static/*.mjs'; git ls-files --others --exclude-standard -- $$made); \
	test -z "$$left" || { echo "Not committed: these follow the notebooks and are not staged. Next: git add" $$left "&& git commit"; exit 1; }

sync: setup
	@$(PYTEST) -q -rN $(FORM) -k in_sync

house: setup
	@$(PYTEST) -q -rN $(FORM) || { echo "Each line above names a file and what mends it. Next: mend it, then make test"; exit 1; }

book: sync  ## execute every page that changed and build the site
	@$(MAKE) --no-print-directory site
	@echo "The book lies in $(SITE)/index.html. Open that file, or run: make serve"

site:
	@echo "== building the book"
	@$(BOOK) build . -W --keep-going --builder html

# The first page comes along, because the theme wants a contents. The others are left out, so links to them cannot be
# followed; only a failing cell stops this, or a page that takes too much.
page: NAME = $(basename $(notdir $(PAGE)))
page: OUT = _build/page/_build/html
page: setup  ## execute and build one page: make page PAGE=02a_tokenizer
	@test -f nbs/$(NAME).ipynb || test -f nbs/$(NAME).md || $(BIN)/python -c "$$NEAREST" "$(NAME)"
	@mkdir -p _build/page && rm -rf $(OUT)/reports $(OUT)/nbs/$(NAME).html
	@printf 'format: jb-book\nroot: nbs/index\nchapters:\n- file: nbs/%s\n' $(NAME:index=glossary) > _build/page/toc.yml
	@$(BOOK) build . --toc _build/page/toc.yml --path-output _build/page --quiet > _build/page/log 2>&1 || true
	@report=$(OUT)/reports/nbs/$(NAME).err.log; ! test -f $$report || { sed '/^Traceback/,/CellExecutionError:/d' $$report; \
	  echo "nbs/$(NAME).ipynb: the cell above fails. Next: mend it, then make page PAGE=$(NAME)"; exit 1; }
	@test -f $(OUT)/nbs/$(NAME).html || { cat _build/page/log; exit 1; }
	@! grep -Eo 'nbs/$(NAME).ipynb: (takes|needs) [^;]*; .*PAGE=$(NAME)' _build/page/log
	@echo "The page lies in $(OUT)/nbs/$(NAME).html. Next: look at it, then make test"

pdf: book  ## print the whole book into one PDF, which the site then offers
	@$(BIN)/python -m llm_literate.printing

serve: setup  ## serve the built site on this machine
	@test -f $(SITE)/index.html || $(MAKE) --no-print-directory book
	@echo "The book is at http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

lint: setup  ## ruff on notebooks and tests
	@$(BIN)/ruff check --output-format concise .

# Pages over their budget of time stop this, and not make book, which a slow machine may take as long for as it likes.
test: export LLM_LITERATE_TIMED := 1
test: house lint site  ## everything that passes or fails
	@echo "== tests"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(addprefix --ignore=,$(FORM))
	@echo "All passes. Next: git commit"

vocabulary: setup  ## train the shipped vocabulary again
	@$(BIN)/python -c 'from llm_literate import small_world, tokenizer; tokenizer.BPETokenizer.train(small_world.corpus(), 2048).save("llm_literate/assets/small_tokenizer.json")'

# Memory that is kept for the next step need not be asked for again (glibc).
pretrain: export MALLOC_TOP_PAD_ := 268435456
pretrain: export MALLOC_TRIM_THRESHOLD_ := 17179869184
pretrain: setup  ## train the shipped model again, and its relative of one layer (an hour or more)
	@$(BIN)/python -m llm_literate.pretrain --folder runs/small
	@$(BIN)/python -m llm_literate.pretrain --folder runs/one_layer --layers 1
	@cp runs/small/small_model.* llm_literate/assets/
	@cp runs/one_layer/small_model.json llm_literate/assets/one_layer.json

pictures: setup  ## draw the stored pictures again: the roadmap and the preview
	@$(BIN)/python -c 'from llm_literate import figures; figures.write_assets()'

# Without what they need for other things, which would replace the tested versions.
peers: setup  ## install the libraries that bench compares with
	@$(BIN)/python -m pip install --no-deps llms-from-scratch==1.0.19 litgpt==0.5.13 lightning==2.6.6 \
	  lightning-utilities==0.15.3 torchmetrics==1.9.0 jsonargparse==4.53.0 | $(NEWS)

bench: setup  ## time our code beside its peers, in one run
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

screenshot: book  ## draw the README's picture of the site
	@test -n "$(BROWSER)" || { echo "A picture needs Chromium or Chrome. Next: make screenshot BROWSER=/path/to/it"; exit 1; }
	@"$(BROWSER)" --headless --no-sandbox --hide-scrollbars --window-size=1280,820 --virtual-time-budget=4000 \
	  --screenshot=$(CURDIR)/nbs/_static/screenshot.png file://$(CURDIR)/$(SITE)/nbs/03a_self_attention.html

clean:  ## remove what was built; the environment stays
	@rm -rf _build dist build *.egg-info
