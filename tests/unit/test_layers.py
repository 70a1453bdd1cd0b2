"""The table of operations accounts for every one of them, and for their work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.latency import guides, layers, work
from engine.bundle.maps import free_sizes
from engine.bundle.reader import Bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE


@pytest.mark.parametrize("case", ["form1", "form1_zcond", "uncond"])
def test_every_operation_is_timed_and_its_work_counted(
    case: str, native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    monkeypatch.setattr(layers, "SECONDS", 0.01)
    bundle = Bundle.open(native_bundle(case))
    _, graph, arrays = layers.opened(bundle.path, 3, "bf16", 1)
    with graph:
        step, operations = layers.measure(graph, arrays)
    assert step > 0
    assert all(op.product_us > 0 and op.side >= 1 for op in operations)
    assert {op.kind for op in operations} >= {"input", "conv 3x3, bf16", "conv 3x3 up, bf16"}
    # Nearest doubling before a 3x3 is done as four 2x2: less work than the graph has, never more.
    pipeline = bundle.manifest.pipeline
    counted = work.count(bundle.read_graph(pipeline.step.graph), free_sizes(pipeline)).flop * 3
    assert 0.5 * counted < sum(op.flop for op in operations) <= 1.05 * counted
    rows = layers.summed(operations)
    assert sum(row.count for row in rows) == len(operations)
    assert sum(row.product_us for row in rows) == pytest.approx(sum(op.product_us for op in operations))


def test_the_command_tells_machine_step_and_shares(
    native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "SECONDS", 0.01)
    monkeypatch.setattr(layers.roofline, "SECONDS", 0.01)
    path = str(native_bundle("form1", "bf16", "int8"))
    done = CliRunner().invoke(layers.main, [path, "--precision", "int8", "--threads", "1", "--batch", "2"])
    assert done.exit_code == 0, done.output
    assert "native int8 on" in done.output
    assert "conv 3x3, int8" in done.output
    assert "of it preparing operands" in done.output
    refused = CliRunner().invoke(layers.main, [path + "-none"])
    assert refused.exit_code == 1
    assert "Error: " in refused.output


def test_a_guide_is_divided_where_its_classifier_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    known = guides.CLASSIFIERS["64x64_classifier"]
    unet = replace(
        known.spec.unet, out_channels=7, model_channels=64, channel_mult=(1, 1, 2), num_res_blocks=1, attention_factors=(4,)
    )
    tiny = replace(known, spec=replace(known.spec, unet=unet))
    monkeypatch.setattr(guides, "CLASSIFIERS", {"64x64_classifier": tiny})
    done = CliRunner().invoke(guides.main, ["--runs", "1", "--threads", "1"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    forward, back = (next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("classifier", "way back"))
    assert any("classify at 16" in line for line in lines[forward:back])
    assert any("attention_gradient at 16" in line for line in lines[back:])
    assert lines[-1].endswith("times what its classifier does")
