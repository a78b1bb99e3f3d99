# make demo   sets everything up and runs the main job on videos that it makes itself
# make test   sets everything up and passes the tests
# make lint   ruff, mypy, import-linter, shellcheck and hadolint
# make docs   the documentation as a site, into site/
# PYTHON=...  interpreter to use (3.10 to 3.12); VENV=... where to install

VENV ?= .venv
DEMO ?= demo
bin := $(VENV)/bin

.PHONY: setup demo test lint docs clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt install.sh
	./install.sh $(VENV) dev
	touch $@

demo: setup
	$(bin)/cosmos-hpc sample-videos $(DEMO)/videos count=160 height=96 width=160
	$(bin)/cosmos-hpc submit recipe=ar_tiny data.input=$(DEMO)/videos cluster.runs=$(DEMO)/runs --name demo
	@echo
	@echo "Look at it, and go on with it:"
	@echo "  . $(bin)/activate"
	@echo "  cosmos-hpc status $(DEMO)/runs/demo"
	@echo "  cosmos-hpc report $(DEMO)/runs/demo"
	@echo "  cosmos-hpc generate $(DEMO)/runs/demo input=$(DEMO)/videos/scene-0000.mp4"

test: setup
	./tests/slurm/install.sh
	./tests/install-podman.sh
	./tests/install-chromium.sh
	$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/shellcheck install.sh .ci/run containers/*.sh tests/*.sh tests/slurm/*.sh \
		cosmos_hpc/backends/slurm/*.sh sbatch/*/*.sh
	$(bin)/hadolint containers/Dockerfile

docs: setup
	NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(DEMO) site
