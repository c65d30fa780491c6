"""``tools/upstream_tests.py``: it survives whatever a test does, and reports what is not as listed."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tarfile

import pytest

TOOL = pathlib.Path(__file__).parents[1] / "tools" / "upstream_tests.py"
TESTS = """
import os
import pytest
import torch

DEVICE = "cpu"

@pytest.mark.parametrize("value", [1, 2])
def test_good(value):
    assert os.environ["BNB_TEST_DEVICE"] == DEVICE
    assert torch.zeros(1, device=DEVICE).device.type == DEVICE

def test_wrong():
    assert 1 == 2, "one is not two"

def test_fatal():
    os.abort()

def test_left_out():
    pytest.skip("for a reason")

def test_after():
    pass

@pytest.mark.benchmark
def test_timing():
    assert False
"""


@pytest.fixture
def source(tmp_path):
    """A folder that looks like bitsandbytes' source."""
    folder = tmp_path / "bitsandbytes-1"
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "test_ops.py").write_text(TESTS)
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["benchmark: times"]\n')
    return folder


def run(*arguments, device="cpu"):
    command = [sys.executable, str(TOOL), "--device", device, *map(str, arguments), "test_ops"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_every_outcome_is_counted(source, tmp_path):
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, source.name)
    for given in (source, archive, archive.as_uri()):
        done = run("--source", given)
        assert done.returncode == 1, done.stderr
        assert "| test_ops | 6 | 3 | 0 | 0 | 3 |" in done.stdout
        assert "UNEXPECTED failed: tests/test_ops.py::test_wrong" in done.stdout
        assert "UNEXPECTED crashed: tests/test_ops.py::test_fatal" in done.stdout
        assert "UNEXPECTED skipped: tests/test_ops.py::test_left_out: Skipped: for a reason" in done.stdout
        assert "test_timing" not in done.stdout


def test_on_the_xpu(source, tmp_path, xpu):
    file = source / "tests" / "test_ops.py"
    file.write_text(TESTS.replace('DEVICE = "cpu"', 'DEVICE = "xpu"').partition("def test_fatal")[0])
    done = run("--source", source, device="xpu")
    assert "| test_ops | 3 | 2 | 0 | 0 | 1 |" in done.stdout, done.stdout + done.stderr


def test_a_run_continues(source, tmp_path):
    results = tmp_path / "results.jsonl"
    assert "stopped: out of time" in run("--source", source, "--results", results, "--seconds", 0).stdout
    before = results.read_text()
    assert len({json.loads(line)["test"] for line in before.splitlines()}) == 1
    done = run("--source", source, "--results", results)
    assert results.read_text().startswith(before)
    assert "| test_ops | 6 | 3 | 0 | 0 | 3 |" in done.stdout


def test_the_list_is_compared(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("upstream_tests", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / "list.toml"
    known = '{file="test_ops", tests="test_a.*", text="Triton", devices=["cpu"], reason="there is no Triton"}'
    path.write_text(f"fails = [{known}]\nskips = []\n")
    outcomes = [
        {"test": "tests/test_ops.py::test_a[1]", "outcome": "failed", "text": "E  TritonMissing"},
        {"test": "tests/test_ops.py::test_a[2]", "outcome": "passed", "text": ""},
    ]
    assert tool.report(outcomes, tool.Entries(path, "cpu"), ["test_ops"], True) == 0
    assert tool.report(outcomes[1:], tool.Entries(path, "cpu"), ["test_ops"], True) == 1
    outcomes[0]["text"] = "E  something else"
    assert tool.report(outcomes, tool.Entries(path, "cpu"), ["test_ops"], False) == 1
    assert tool.report(outcomes[:1], tool.Entries(path, "xpu"), ["test_ops"], False) == 1
    assert "not applicable: 1 of test_ops: there is no Triton" in capsys.readouterr().out


def test_a_run_is_held_to_one_without_our_operators(source, tmp_path):
    results = tmp_path / "without.jsonl"
    done = run("--source", source, "--results", results, "--without")
    assert done.returncode == 0, done.stderr
    assert "| test_ops | 6 | 3 | 2 | 1 | 0 |" in done.stdout
    done = run("--source", source, "--compare", results)
    assert done.returncode == 0, done.stdout
    assert "| test_ops | 6 | 3 | 2 | 1 | 0 |" in done.stdout
    assert "without our operators, failed" in done.stdout
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    kept = [line for line in lines if "test_wrong" not in line["test"]]
    kept.append({"test": "tests/test_ops.py::test_wrong", "outcome": "passed", "text": "", "seconds": 0})
    results.write_text("".join(json.dumps(line) + "\n" for line in kept))
    done = run("--source", source, "--compare", results)
    assert done.returncode == 1
    assert "UNEXPECTED failed: tests/test_ops.py::test_wrong" in done.stdout


def test_something_else_than_the_source(tmp_path):
    done = run("--source", tmp_path)
    assert done.returncode == 1
    assert "has no tests/test_ops.py" in done.stderr
