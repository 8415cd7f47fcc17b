# The commands of README.md. Each makes the environment (.venv) first, which costs nothing once it is there.
PYTHON_ENV := .venv/bin/python

.PHONY: env quickstart test test-matrix fuzz lint zoo docs

env:
	@bash tools/make_env.sh

quickstart: env
	@$(PYTHON_ENV) tools/quickstart.py

test: lint
	@$(PYTHON_ENV) -m pytest -n 2 --durations 10

# The suite on every Python that is found, with the lowest, tested and newest versions; CELLS="lowest" chooses.
test-matrix:
	@python3 tools/version_matrix.py $(CELLS)

# Thousands of damaged and hostile files; FUZZ has further options, e.g. FUZZ="--seed 1 --inputs 1000".
fuzz: env
	@OMP_NUM_THREADS=1 $(PYTHON_ENV) -m tests.fuzz $(FUZZ)

lint: env
	@$(PYTHON_ENV) -m ruff format --check . && $(PYTHON_ENV) -m ruff check .

zoo: env
	@$(PYTHON_ENV) tools/update_model_zoo.py

# The site, in docs/_build/html; needs the extra [docs].
docs:
	@COLUMNS=88 $(PYTHON_ENV) -m sphinx -W -n --keep-going -b html docs docs/_build/html
