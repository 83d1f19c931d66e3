# A Python of your choice: make demo PYTHON=python3.11. By default the newest that is here and supported.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin

# Tests that need no exported model and take seconds; `make test` runs all.
FAST := config config_schema cost device_memory docs docstrings engine_choice engine_profiles engine_rewriting families imports kv_cache needs \
	preprocess profile_sensors progress python_choice reference sampling sentences video_sources calibration_schemes
# ONNX Runtime and torch use two cores by themselves; workers beyond that gain time.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) / 2)

.PHONY: demo test check lint clean

# Export the demo checkpoint, then ask the sample clip three questions, pruned and unpruned.
demo: $(VENV)/ready
	$(BIN)/python -m demo

test: $(VENV)/ready
	$(BIN)/python -m pytest $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS) --dist loadfile)

# While you work: lint, types and the fast tests, in less than a minute.
check: lint
	$(BIN)/python -m pytest -q $(FAST:%=tests/test_%.py)

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
