# demo: pictures from the shipped model, two commands after cloning.   test: everything that can be checked on this machine.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
AVATARS := examples/avatars/avatars.ckpt --latent-prior examples/avatars/latent_prior.safetensors

.PHONY: demo test lint bench quality gpu-check clean

demo: $(VENV)/.installed-export
	$(BIN)/python export/build_engines.py $(AVATARS) --out $(OUT)/avatars.bundle
	$(BIN)/python examples/avatars/demo.py $(OUT)/avatars.bundle --out $(OUT)/avatars.png

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-benchmark
	$(BIN)/python benchmarks/latency.py --out $(OUT)/latency.json --plot $(OUT)/latency.png

quality: $(VENV)/.installed-benchmark
	$(BIN)/python export/build_engines.py $(AVATARS) --out $(OUT)/avatars.bundle --precision f32 fp16 bf16 int8
	$(BIN)/python export/build_engines.py examples/avatars/avatars-baseline.ckpt --out $(OUT)/avatars-baseline.bundle
	$(BIN)/python benchmarks/quality.py --bundle $(OUT)/avatars.bundle --baseline $(OUT)/avatars-baseline.bundle --out $(OUT)/quality.json --plot $(OUT)/quality.png
	$(BIN)/python benchmarks/precisions.py --bundle $(OUT)/avatars.bundle --out $(OUT)/precisions.json --picture $(OUT)/precisions.png

# On a machine with an NVIDIA GPU: builds for it, compares, times, writes a report. TENSORRT=tensorrt takes that library.
TENSORRT ?= tensorrt_rtx
gpu-check: $(VENV)/.installed-test $(VENV)/.installed-cuda $(if $(filter tensorrt_rtx,$(TENSORRT)),$(VENV)/.installed-tensorrt-rtx)
	$(BIN)/python benchmarks/gpu_check.py --backend $(TENSORRT) --out $(OUT)/gpu-check.json

# One virtual environment; each extra is installed once and again when setup.py or a kernel source changes.
$(VENV)/.installed-%: setup.py pyproject.toml $(wildcard kernels/*.py kernels/cpu/* kernels/cuda/* kernels/native/* kernels/include/diffusevae/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info kernels/*.so kernels/*.fatbin
