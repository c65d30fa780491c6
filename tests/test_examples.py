"""The programs in examples/, as a person would start them, on the tiny model that they make themselves."""

from __future__ import annotations

import re

import pytest
from programs import DEVICES, EXAMPLES, run


def example(name, *arguments, device):
    return run(str(EXAMPLES / f"{name}.py"), *arguments, "--device", device)


@pytest.mark.parametrize("device", DEVICES)
def test_convert_then_chat(xpu, tmp_path, device):
    folder = tmp_path / "quantised"
    output = example("convert", "--output", str(folder), "--bits", "4", device=device)
    assert re.search(r"quantised: 0\.\d MB, ", output)
    assert (folder / "model.safetensors").exists()
    chat = ["--model", str(folder), "--prompt", "Hello", "--max-new-tokens", "12"]
    greedy = example("chat", *chat, "--temperature", "0", device=device)
    assert greedy.strip()
    assert example("chat", *chat, "--temperature", "0", device=device) == greedy


@pytest.mark.parametrize(("device", "bits"), [("cpu", "8"), ("xpu", "4")])
def test_finetune(xpu, tmp_path, device, bits):
    merged = tmp_path / "merged"
    arguments = ["--steps", "8", "--lr", "1e-2", "--length", "32", "--rank", "4", "--bits"]
    output = example(
        "finetune", *arguments, bits, "--output", str(tmp_path / "adapter"), "--merge", str(merged), device=device
    )
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", output).groups())
    assert last < first - 0.1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (merged / "model.safetensors").exists()


def test_every_example_has_help_and_stands_in_the_readme():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")
    readme = (EXAMPLES / "README.md").read_text()
    for name in names:
        assert f"[{name}.py]({name}.py)" in readme
    assert names == ["chat", "convert", "distributed", "finetune"]
    assert "bitsandbytes_intel" not in "".join(path.read_text() for path in EXAMPLES.glob("*.py"))
