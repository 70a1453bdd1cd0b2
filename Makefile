# demo: pictures from the shipped model, two commands after cloning.   demo-latent: from words.
# test: everything that can be checked on this machine.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
AVATARS := examples/avatars/avatars.ckpt --latent-prior examples/avatars/latent_prior.safetensors

# Most tests run on one thread: two processes halve the time, a file at a time, as its fixtures are its own. In the order of
# the folders: the slow files come first, which xdist itself would leave to the end where they hold few tests.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-latent studio test pytest test-cpp test-triton lint docs bench bench-serving quality gpu-check clean

demo: $(VENV)/.installed-export
	$(BIN)/python export/build_engines.py $(AVATARS) --out $(OUT)/avatars.bundle
	$(BIN)/python export/fit_directions.py $(OUT)/avatars.bundle --take examples/avatars/directions.safetensors
	$(BIN)/python export/fit_setting.py $(OUT)/avatars.bundle --take examples/avatars/settings.json
	$(BIN)/python export/fit_refine.py $(OUT)/avatars.bundle --take examples/avatars/starts.json
	$(BIN)/python examples/avatars/demo.py $(OUT)/avatars.bundle --out $(OUT)/avatars.png
	@echo "make studio opens a page to try it on: http://127.0.0.1:8080"

LATENT := examples/avatars-latent
demo-latent: $(VENV)/.installed-export,text
	test -d $(OUT)/avatars.bundle || $(MAKE) demo
	$(BIN)/python export/build_engines.py $(LATENT)/avatars-latent.ckpt --config $(LATENT)/avatars-latent.yaml --vocabulary $(LATENT)/vocab.txt --out $(OUT)/avatars-latent.bundle
	$(BIN)/python export/fit_setting.py $(OUT)/avatars-latent.bundle --take $(LATENT)/settings.json
	$(BIN)/python $(LATENT)/demo.py $(OUT)/avatars-latent.bundle --faces $(OUT)/avatars.bundle --out $(OUT)/avatars-latent.png

studio: $(VENV)/.installed-serve
	test -d $(OUT)/avatars.bundle || $(MAKE) demo
	$(BIN)/diffusevae studio $(OUT)/avatars.bundle

test: $(VENV)/.installed-test
	$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: $(VENV)/.installed-test
	$(PYTEST)

# The C++ library, its packages and examples, bit for bit against Python. Needs OpenSSL's headers (libssl-dev).
test-cpp: $(VENV)/.installed-test
	$(PYTEST) tests/cpp

# The real Triton server on the loopback interface, over HTTP and gRPC.
TRITON := DIFFUSEVAE_TRITON_PYTHON=$(VENV)-triton DIFFUSEVAE_TRITON=required
test-triton: $(VENV)/.installed-test $(VENV)-triton/.installed
	$(TRITON) $(PYTEST) tests/triton_server

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The API reference, from the docstrings: what programs import and what new solvers, backends and families follow.
API := engine engine.errors engine.bundle engine.solver engine.pipeline engine.request engine.backends.base engine.kernels engine.device \
	export.build export.families
docs: $(VENV)/.installed-docs
	$(BIN)/pdoc --no-show-source --template-directory docs/api --output-directory $(OUT)/docs $(API)

bench: $(VENV)/.installed-benchmark
	$(BIN)/python benchmarks/latency --out $(OUT)/latency.json --plot $(OUT)/latency.png

bench-serving: $(VENV)/.installed-test $(VENV)-triton/.installed
	$(BIN)/python export/build_engines.py $(AVATARS) --out $(OUT)/avatars.bundle
	$(TRITON) $(BIN)/python benchmarks/serving --bundle $(OUT)/avatars.bundle --out $(OUT)/serving.json --plot $(OUT)/serving.png

# Fits settings first (half an hour); their scores are kept beside the bundles, so that a second run goes on from there.
quality: $(VENV)/.installed-benchmark $(OUT)/train.npz
	$(BIN)/python export/build_engines.py $(AVATARS) --out $(OUT)/avatars.bundle --precision f32 fp16 bf16 int8
	$(BIN)/python export/build_engines.py examples/avatars/avatars-baseline.ckpt --out $(OUT)/avatars-baseline.bundle
	rm -rf $(OUT)/avatars-noise.bundle
	cp -R $(OUT)/avatars.bundle $(OUT)/avatars-noise.bundle
	$(BIN)/python export/fit_setting.py $(OUT)/avatars.bundle --images $(OUT)/train.npz
	$(BIN)/python export/fit_setting.py $(OUT)/avatars-noise.bundle --images $(OUT)/train.npz --start noise
	$(BIN)/python export/fit_setting.py $(OUT)/avatars-baseline.bundle --images $(OUT)/train.npz
	$(BIN)/python benchmarks/quality --bundle $(OUT)/avatars.bundle --noise-bundle $(OUT)/avatars-noise.bundle --baseline $(OUT)/avatars-baseline.bundle --heldout $(OUT)/heldout.npz --out $(OUT)/quality.json --plot $(OUT)/quality.png
	$(BIN)/python benchmarks/quality/precisions.py --bundle $(OUT)/avatars.bundle --out $(OUT)/precisions.json --picture $(OUT)/precisions.png
	$(BIN)/python export/fit_refine.py $(OUT)/avatars.bundle --images $(OUT)/train.npz
	$(BIN)/python benchmarks/quality/robustness.py --bundle $(OUT)/avatars.bundle --heldout $(OUT)/heldout.npz --out $(OUT)/robustness.json

$(OUT)/train.npz: | $(VENV)/.installed-benchmark
	$(BIN)/python examples/avatars/dataset.py --out $(OUT) --train 4000 --heldout 4000

# On a machine with an NVIDIA GPU: builds for it, compares, times, writes a report. TENSORRT=tensorrt takes that library.
TENSORRT ?= tensorrt_rtx
gpu-check: $(VENV)/.installed-test $(VENV)/.installed-cuda $(if $(filter tensorrt_rtx,$(TENSORRT)),$(VENV)/.installed-tensorrt-rtx)
	$(BIN)/python benchmarks/gpu --backend $(TENSORRT) --out $(OUT)/gpu-check.json

# One virtual environment; each extra is installed once, and again when the packaging or a kernel source changes.
$(VENV)/.installed-%: setup.py pyproject.toml $(wildcard kernels/*.py engine/kernels/*.py kernels/cpu/* kernels/cuda/* kernels/native/* kernels/include/diffusevae/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

# What the server runs in, without torch. Its program comes in NVIDIA's Python wheel, whose Python backend needs an older numpy
# than we do and whose own requirements we do not need. The kernels are in the tree, compiled for the first environment.
$(VENV)-triton/.installed: $(VENV)/.installed-test
	test -x $(VENV)-triton/bin/python || $(PYTHON) -m venv $(VENV)-triton
	DIFFUSEVAE_KERNELS=numpy $(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check -e . "numpy<2"
	$(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-triton $(OUT) build dist *.egg-info engine/kernels/*.so engine/kernels/*.fatbin
