# A Python of your choice: make demo PYTHON=python3.11. By default the newest that is here and supported.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# Export the demo checkpoint, then ask the sample clip three questions, pruned and unpruned.
demo: $(VENV)/ready
	$(BIN)/python -m demo

test: $(VENV)/ready
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml constraints.txt
	@python="$(PYTHON)"; python="$${python:-$$(.ci/find-python)}" && \
	echo "Installing with $$python into $(VENV); torch may bring gigabytes of CUDA libraries (README.md, Install)" && \
	"$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
