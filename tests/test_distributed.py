"""QLoRA in two processes, by examples/distributed.py: the loss of one process, and a sharded checkpoint read whole."""

from __future__ import annotations

import os

import pytest
import torch
from programs import DEVICES, EXAMPLES, run

PROGRAM = str(EXAMPLES / "distributed.py")
TRAIN = ["--dtype", "float32", "--lr", "1e-2", "--rank", "8", "--length", "32", "--batch", "4"]
TRAIN += ["--min-8bit-size", "256"]  # of adapters so small
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# What `accelerate launch` runs; --cpu in the place of --multi_gpu would start one process.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def loss(output: str) -> float:
    line = next(line for line in output.splitlines() if line.startswith("loss after"))
    return float(line.rpartition(" ")[2])


@pytest.fixture(scope="module")
def in_one_process():
    return loss(run(PROGRAM, *TRAIN, "--steps", "4", "--device", "cpu"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("device", DEVICES)
def test_two_processes_have_the_loss_of_one(xpu, in_one_process, tmp_path, device, strategy):
    command = [PROGRAM, *TRAIN, "--device", device]
    output = run(*TORCHRUN, *command, "--steps", "4", "--strategy", strategy, "--output", str(tmp_path / "adapter"))
    assert loss(output) == pytest.approx(in_one_process, rel=1e-4)
    assert len([name for name in os.listdir(tmp_path / "adapter") if name.endswith(".distcp")]) == 2
    whole = run(*command, "--steps", "0", "--resume", str(tmp_path / "adapter"))
    assert loss(whole) == pytest.approx(loss(output), rel=1e-5)


def test_accelerate_launch(in_one_process, tmp_path):
    command = [PROGRAM, *TRAIN, "--device", "cpu", "--steps", "4", "--output", str(tmp_path / "adapter")]
    assert loss(run(*ACCELERATE, *command)) == pytest.approx(in_one_process, rel=1e-4)
    assert len([name for name in os.listdir(tmp_path / "adapter") if name.endswith(".distcp")]) == 2
