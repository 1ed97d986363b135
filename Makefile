VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO := demo-output
OLDEST := .venv-oldest
INFINITY := .venv-infinity
SITE := site

.PHONY: help install demo docs native pocket-bundle fix coverage test test-native test-slow test-oldest bench bench-native bench-serve bench-infinity bench-search bench-shards bench-report lint clean

help:
	@echo "make demo          draw a scene, export the model that comes with the package, and ask it what it sees"
	@echo "make native        build the C library, which needs cargo and a C compiler, into native/build"
	@echo "make test          lint, check types, and run the tests"
	@echo "make test-native   build the C library and run its tests only, those of its crates among them"
	@echo "make test-slow     run the tests that take minutes or gigabytes"
	@echo "make test-oldest   run the runtime's tests with the oldest versions of its requirements"
	@echo "make bench         measure models of real size beside what a user would pick instead"
	@echo "make bench-native  measure the C library beside the Python package"
	@echo "make bench-serve   measure the HTTP server beside the calls that it stands for, and with too much work"
	@echo "make bench-infinity measure the HTTP server beside infinity, in an environment of its own"
	@echo "make bench-search  measure an index: making it, checking it, and searching a million images"
	@echo "make bench-shards  measure jobs over shards beside the calls that they stand for"
	@echo "make bench-report  make the pages and their pictures again from the results that are there"
	@echo "make docs          write the generated parts of docs/ anew and build the site into $(SITE)/"
	@echo "make pocket-bundle export the bundle that comes with the package anew"
	@echo "make coverage      run the tests and report the lines that they reach"
	@echo "make fix           format the code, and mend what ruff can"
	@echo "make lint          run ruff and mypy"
	@echo "make install       set up $(VENV), which all of the above do by themselves; PYTHON=... names a Python"
	@echo "make clean         remove $(VENV), $(OLDEST), $(INFINITY), $(SITE) and what the demo made"

install: $(VENV)/installed

# An older Python would let pip search for minutes and leave half an environment.
$(VENV)/installed: pyproject.toml
	@$$(test -d $(VENV) && echo $(BIN)/python || echo $(PYTHON)) -c 'import sys; v = sys.version_info; sys.exit( \
		v < (3, 11) and "%s is Python %d.%d, and fgclip-rt needs 3.11 or later; name another, as in: " \
		"make clean install PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing fgclip-rt and its tools into $(VENV), which takes a minute or two ..."
	$(BIN)/pip install --disable-pip-version-check --editable '.[dev]'
	# A peer for FineCLIP's towers, without its torchvision, for which there is no build beside this torch.
	$(BIN)/pip install --quiet --no-deps timm==1.0.31
	touch $@

# Draw a scene, export the model that comes with the package, prove its numbers, and ask it what it sees.
demo: install
	rm -rf $(DEMO)
	mkdir $(DEMO)
	$(BIN)/fgclip-rt scene --seed 21 --output $(DEMO)/scene.png
	$(BIN)/fgclip-rt export --model fg-clip2-pocket --output $(DEMO)/pocket
	$(BIN)/fgclip-rt verify $(DEMO)/pocket
	$(BIN)/fgclip-rt score $(DEMO)/pocket $(DEMO)/scene.png \
		--text "a big spotted yellow star below a large pink circle with dots" \
		--text "a big striped yellow star below a large pink circle with dots" \
		--text "大大的圆点黄色五角星在一个带圆点的很大的粉色圆形的下面" \
		--text "大大的条纹黄色五角星在一个带圆点的很大的粉色圆形的下面"
	$(BIN)/fgclip-rt heatmap $(DEMO)/pocket $(DEMO)/scene.png --output $(DEMO)/map.png \
		--text "a big spotted yellow star" --text "the huge plain black heart" --text "小小的棕色格子月牙"
	$(BIN)/fgclip-rt heatmap $(DEMO)/pocket $(DEMO)/scene.png --output $(DEMO)/overlay.png --overlay \
		--text "a big spotted yellow star" --text "the huge plain black heart"
	@echo "Look at $(DEMO)/scene.png, map.png and overlay.png. In each language one text says dots and one says stripes."

# It says what is missing; `make -C native install PREFIX=...` puts it into a tree.
native:
	$(MAKE) -C native

# Tests of a file stay in one process, which has one thread: more threads than cores would wait for each other.
test: install lint crates
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Its tests are part of `make test`: those in C and Python, which skip where the library cannot be built, and its crates'.
test-native: install native
	$(MAKE) -C native test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/native

.PHONY: crates
crates:
	@if command -v cargo > /dev/null; then $(MAKE) native && $(MAKE) -C native test; \
	else echo "cargo is missing, so the C library is not built or tested (https://rustup.rs installs it)"; fi

test-slow: install
	$(BIN)/pytest -m slow

# The bundle that comes with the package, anew from the checkpoint that does.
pocket-bundle: install
	$(BIN)/python -m tools.pocket.bundle

# The runtime's tests with the oldest versions that it allows and no torch, on bundles that the usual environment makes.
test-oldest: install $(OLDEST)/installed
	rm -rf $(OLDEST)/bundles
	OMP_NUM_THREADS=1 $(BIN)/python tests/bundles.py $(OLDEST)/bundles
	@cat $(OLDEST)/constraints.txt
	OMP_NUM_THREADS=1 FGCLIP_RT_TEST_BUNDLES=$(OLDEST)/bundles $(OLDEST)/bin/pytest tests/runtime tests/heatmap \
		tests/test_imports.py

# The oldest NumPy has no wheels for the newest Python.
$(OLDEST)/installed: pyproject.toml tests/oldest/constraints.py
	python3.11 -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python tests/oldest/constraints.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt \
		--editable '.[cli]' filelock fonttools hypothesis pytest
	touch $@

# Exports models of real size with random weights and measures them beside what a user would pick instead.
bench: install
	$(BIN)/python -m fgclip_rt.benchmarks.page.suite benchmarks

# The C library beside the Python package: starts, resizing, images a second and memory.
bench-native: install native
	$(BIN)/python -m fgclip_rt.benchmarks.page.native benchmarks

# The HTTP server's page.
bench-serve: install
	$(BIN)/python -m fgclip_rt.benchmarks.page.serving benchmarks

# The HTTP server beside infinity, which pins packages that ours are newer than, and lacks two that it needs.
bench-infinity: install $(INFINITY)/installed
	$(BIN)/python -m fgclip_rt.benchmarks.page.infinity benchmarks --python $(INFINITY)/bin/python

$(INFINITY)/installed:
	python3.11 -m venv --clear $(INFINITY)
	$(INFINITY)/bin/pip install --quiet --disable-pip-version-check 'infinity-emb[server,torch,vision]==0.0.78' \
		'numpy<2' 'click<8.2' 'transformers<=5.0' 'optimum<1.27' aiohttp torchvision
	touch $@

# The page of searches.
bench-search: install
	$(BIN)/python -m fgclip_rt.benchmarks.page.search benchmarks

# Jobs over shards.
bench-shards: install
	$(BIN)/python -m fgclip_rt.benchmarks.page.shards benchmarks

# The pages and the pictures again, from the results that are there.
bench-report: install
	$(BIN)/python -m fgclip_rt.benchmarks.page.readme benchmarks

# Parts of the pages are made from the code. A broken link or anchor fails. The variable hides an announcement.
docs: install
	$(BIN)/python -m tools.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)

# Format, and mend what ruff can.
fix: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Lines that the default tests reach in their own process. Much runs in others, such as every command in a new environment.
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report term:skip-covered --cov-report html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) $(INFINITY) $(DEMO) $(SITE) build *.egg-info
