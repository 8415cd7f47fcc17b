# The commands of README.md. Each makes the environment (.venv) first, which costs nothing once it is there.
PYTHON_ENV := .venv/bin/python

.PHONY: env quickstart test lint zoo

env:
	@bash tools/make_env.sh

quickstart: env
	@$(PYTHON_ENV) tools/quickstart.py

test: lint
	@$(PYTHON_ENV) -m pytest -n 2 --durations 10

lint: env
	@$(PYTHON_ENV) -m ruff format --check . && $(PYTHON_ENV) -m ruff check .

zoo: env
	@$(PYTHON_ENV) tools/update_model_zoo.py
