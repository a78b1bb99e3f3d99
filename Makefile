# make demo   sets everything up and runs the main job on videos that it makes itself
# make test   sets everything up and passes the tests
# make lint   ruff, mypy, import-linter, shellcheck and hadolint
# PYTHON=...  interpreter to use (3.10 to 3.12); VENV=... where to install

VENV ?= .venv
DEMO ?= demo
bin := $(VENV)/bin

.PHONY: setup demo test lint clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt install.sh
	./install.sh $(VENV) dev
	touch $@

demo: setup
	$(bin)/cosmos-hpc sample-videos $(DEMO)/videos count=160 height=96 width=160
	$(bin)/cosmos-hpc submit recipe=ar_tiny data.input=$(DEMO)/videos cluster.runs=$(DEMO)/runs --name demo

test: setup
	./tests/slurm/install.sh
	./tests/install-podman.sh
	./tests/install-chromium.sh
	$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/shellcheck install.sh .ci/run containers/*.sh tests/*.sh tests/slurm/*.sh \
		cosmos_hpc/backends/slurm/*.sh sbatch/*/*.sh
	$(bin)/hadolint containers/Dockerfile

clean:
	rm -rf $(VENV) $(DEMO)
