"""``bench``: what it measures is there and adds up; speed itself is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from bitsandbytes import cextension
from typer.testing import CliRunner

from bitsandbytes_intel import backward, ops
from bitsandbytes_intel.bench import accuracy, common, whole_model
from bitsandbytes_intel.cli import bench
from bitsandbytes_intel.cli.app import app


def test_whole_model_in_a_process_for_each_side() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitsandbytes_intel", "bench", "--model", "--size", "tiny", "--quick", "--threads", "1",
         "--isa", "avx2", "--json"],
        env={**os.environ, "BNB_INTEL_VIRTUAL_XPU": "0"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(done.stdout)
    assert data["isa"] == "avx2"
    for side in whole_model.SIDES:
        figures = data[side]
        assert figures["layout"] == "as quantised"
        assert figures["decode_tokens_per_s"] > 0
        assert figures["prefill_s"] > 0
        assert figures["run_peak_bytes"] > 0
    ratios = {row["what"]: row["ratio"] for row in data["rows"]}
    expected = data["ours"]["decode_tokens_per_s"] / data["upstream"]["decode_tokens_per_s"]
    assert ratios["decode"] == pytest.approx(expected)
    size = whole_model.SIZES["tiny"]
    table = size.vocabulary * size.hidden
    attention = 2 * size.hidden**2 * (1 + size.kv_heads / size.heads)
    assert data["parameters"] == table + size.layers * (
        attention + 3 * size.hidden * size.intermediate + 2 * size.hidden
    ) + (size.hidden)


def test_a_worker_that_dies_says_why() -> None:
    with pytest.raises(whole_model.WorkerFailed, match="KeyError: 'no such size'"):
        list(whole_model.measure("ours", "no such size", threads=1))


def test_a_training_step_lowers_the_loss(one_thread) -> None:
    pytest.importorskip("peft")
    size = whole_model.SIZES["tiny"]
    step = whole_model.qlora(whole_model.build(size), size.vocabulary, length=32)
    losses = [step() for _ in range(8)]
    assert losses[-1] < losses[0] - 0.01


def test_our_codes_are_cudas_and_cost_what_cudas_cost(one_thread) -> None:
    model = accuracy.train_language_model(2, lambda: None, width=64)
    text = accuracy.held_out(2)
    registered = ops.registered()
    perplexity, found = accuracy.costs("language model", model, lambda m: accuracy.read(m, text), lambda: None)
    assert set(ops.registered()) == set(registered)
    assert 50 < perplexity < 300  # it has hardly been trained
    assert len(found) == len(accuracy.KINDS) * len(accuracy.IMPLEMENTATIONS)
    by = {(each.kind, each.implementation): each for each in found}
    for kind in accuracy.KINDS:
        ours, cuda = by[kind, "ours"], by[kind, "CUDA's codes"]
        assert ours.same_codes
        assert 0 < ours.error == pytest.approx(cuda.error, rel=1e-2)
        assert ours.perplexity == pytest.approx(cuda.perplexity, rel=1e-5)
    checks = accuracy.no_worse(found)
    assert len(checks) == 2 * len(accuracy.KINDS)
    assert all(value <= most for _, value, most in checks)


def test_worse_than_cuda_is_noticed() -> None:
    costs = [
        accuracy.Cost("m", "nf4", "CUDA's codes", 0.1, 2.0, True),
        accuracy.Cost("m", "nf4", "ours", 0.1, 2.1, True),
    ]
    assert [value <= most for _, value, most in accuracy.no_worse(costs)] == [True, False]


@pytest.mark.parametrize("options", [["--model", "--accuracy"], ["--model", "--isa", "sse"], ["--threads", "0"]])
def test_wrong_usage_is_status_2(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", *options]).exit_code == 2


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--model"]])
def test_a_rival_without_its_own_kernels_is_refused(options: list[str], monkeypatch) -> None:
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("missing"))
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 2
    assert "bitsandbytes has not loaded its own library" in " ".join(result.output.split())


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(bench.Unusable, match=r"pip install 'bitsandbytes-intel\[bench\]'"):
        bench._require("torch", "a_package_that_is_not_there")


def test_held_out_text_is_not_trained_on() -> None:
    trained, held_out = accuracy.source_text()
    assert len(trained) > 5 * len(held_out) > 0
    assert trained.dtype == held_out.dtype == torch.uint8


@pytest.fixture
def known_bandwidth(one_thread, monkeypatch) -> None:
    """Little memory, and no time for its bandwidth."""
    monkeypatch.setattr(common, "ROTATED", 1)
    measured = {"copy_gbps": 20.0, "read_gbps": 10.0}
    monkeypatch.setattr(common.Report, "measure_bandwidth", lambda self: vars(self).update(measured))


def test_one_operator_quickly_with_a_picture(known_bandwidth, monkeypatch, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(common, "has_upstream", lambda: True)  # in the tests' own process it may not have
    picture = tmp_path / "bench.png"
    options = ["--quick", "--device", "cpu", "--operator", "quantize_blockwise", "--plot", str(picture), "--json"]
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 0, result.output + repr(result.exception)
    (row,) = json.loads(result.stdout)["devices"]["cpu"]["rows"]
    assert row["operator"] == "quantize_blockwise"
    assert row["ratio"] == pytest.approx(row["upstream_ms"] / row["ours_ms"])
    assert row["limit_ms"] == pytest.approx(4096 * 4096 * (2 + 1 + 4 / 256) / 20e6)
    assert picture.read_bytes().startswith(b"\x89PNG")
    unknown = CliRunner().invoke(app, ["bench", "--device", "cpu", "--operator", "fly"])
    assert unknown.exit_code == 2
    assert "not known; there are Linear8bitLt, dequantize_4bit" in unknown.stderr


def test_beside_the_xpu_no_plain_torch_stands_for_upstreams_cpu_kernels(known_bandwidth, monkeypatch) -> None:
    monkeypatch.setattr(common, "has_upstream", lambda: False)
    result = CliRunner().invoke(app, ["bench", "--quick", "--operator", "quantize_blockwise", "--json"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    devices = json.loads(result.stdout)["devices"]
    for row in devices["cpu"]["rows"]:
        assert row["ours_ms"] > 0
        assert row["upstream_ms"] is row["ratio"] is None
    assert "bench --device cpu measures it" in devices["cpu"]["notes"][0]
    assert all(row["ratio"] for row in devices["xpu"]["rows"])


def test_every_operator_has_a_benchmark() -> None:
    timed = {operator for name in common.CPU_BENCHMARKS for operator in common.operators_of(name)}
    without = {"gemv_4bit.out", "int8_linear_matmul.out"}  # the same kernels, into memory that is given
    assert {operator.name for operator in ops.OPERATORS} - without == timed - {"Linear8bitLt", backward.NAME}
