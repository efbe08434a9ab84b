# Two commands: `make demo` and `make test`. Both set up .venv first, from the hashed lock file.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
UV := uv==0.13.9
BIN := .venv/bin

# Waiting threads sleep: see midog/__main__.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint lock bench clean

demo: .venv/ready
	$(BIN)/midog demo demo

test: .venv/ready lint
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# requirements.txt: every version exact, transitive ones too, with hashes, for Linux x86-64, aarch64 and macOS.
# requirements-container.txt: the same versions, what inference needs beside the base image's torch and no more. timm
# works without huggingface-hub: an image that never downloads does without a downloader.
lock: .venv/ready
	$(BIN)/uv pip compile --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" --extra train --extra test pyproject.toml -o requirements.txt
	@mkdir -p build
	printf "%s ; python_version < '3'\n" torch torchvision huggingface-hub > build/left-out.txt
	$(BIN)/uv pip compile --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" --constraint requirements.txt --overrides build/left-out.txt \
		pyproject.toml -o requirements-container.txt

.venv/ready: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "midog needs Python 3.11 or newer: install it, or make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
