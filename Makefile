VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO := demo-output
GOLDEN := tests/goldens/fgclip2
PHOTO := $(GOLDEN)/images/1_chelsea_451x300.png

# The editable install links files one by one (so that mypy sees export/ as fgclip_rt.export), hence a new or removed
# file, which touches its folder, installs again.
PACKAGES := fgclip_rt fgclip_rt/backends fgclip_rt/cli fgclip_rt/models/fg-clip2-pocket export export/fgclip2 tools/pocket

.PHONY: install demo test test-slow lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(PACKAGES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]' --config-settings editable_mode=strict
	touch $@

# Export a small checkpoint, prove its numbers, and use it on a photo.
demo: install
	rm -rf $(DEMO)
	mkdir $(DEMO)
	$(BIN)/fgclip-rt export --model $(GOLDEN)/checkpoint --output $(DEMO)/bundle
	$(BIN)/fgclip-rt verify $(DEMO)/bundle
	$(BIN)/fgclip-rt score $(DEMO)/bundle $(PHOTO) --text "一只黑猫" --text "a white cat"
	$(BIN)/fgclip-rt heatmap $(DEMO)/bundle $(PHOTO) --text window --text cat --output $(DEMO)/map.png
	@echo "This checkpoint is small and untrained: it shows that the arithmetic is right, and means nothing by it."

test: install lint
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# From elsewhere, so that the installed package, with export/ in its place, is what is checked.
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
