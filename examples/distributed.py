"""QLoRA on several devices: ``torchrun --nproc-per-node 2 distributed.py``, or ``accelerate launch`` (README.md).

``--strategy ddp`` gives every process the whole model in 4 bits; ``fsdp`` shards it (FSDP2). By itself it is one
process. Processes talk by xccl on Intel GPUs, one process for each, and by gloo on CPUs.
"""

from __future__ import annotations

import os
import pathlib

import bitsandbytes as bnb
import common
import finetune
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tqdm
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies here: bitsandbytes' optimizers take plain tensors."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard(model: nn.Module, device: str) -> nn.Module:
    """The model over all processes, a decoder layer at a time."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in list(model.modules()):
        if type(layer).__name__ in (model.get_base_model()._no_split_modules or ()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main() -> None:
    """Train, save what each process holds, and say the loss over all data."""
    parser = common.parser(__doc__)
    common.training_options(parser, 8, "sequences in a step, over all processes")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="fsdp", help="without torchrun: neither")
    parser.add_argument("--output", type=pathlib.Path, help="a folder for the adapter, saved sharded")
    parser.add_argument("--resume", type=pathlib.Path, help="such a folder, of any number of processes")
    parser.add_argument("--min-8bit-size", type=int, default=4096, help="smaller parameters get 32-bit states")
    options = parser.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if options.batch % world:
        parser.error(f"--batch must be a multiple of the number of processes, {world}, got {options.batch}")
    options.model = options.model or str(common.tiny_model(options.seed))
    device = options.device
    if device == "xpu":
        index = int(os.environ.get("LOCAL_RANK", 0)) % torch.xpu.device_count()
        torch.xpu.set_device(index)
        device = f"xpu:{index}"
    if world > 1:
        dist.init_process_group("xccl" if options.device == "xpu" and dist.is_xccl_available() else "gloo")

    torch.manual_seed(options.seed)  # the same adapter in every process
    # FSDP shards a weight of any dtype; that of the other parameters lets it gather them together.
    model, tokenizer = common.load(options, device, bnb_4bit_quant_storage=getattr(torch, options.dtype))
    data = common.blocks(tokenizer, common.text(options.data), options.length)
    model = finetune.adapted(model, options.rank)
    network: nn.Module = model
    if world > 1:
        network = (
            nn.parallel.DistributedDataParallel(model) if options.strategy == "ddp" else shard(model, options.device)
        )
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if options.resume:
        dcp.load({"adapter": trained}, checkpoint_id=options.resume)
    parts = [nn.Parameter(local(value)) for value in trained.values()]  # the same memory
    optimizer = bnb.optim.AdamW8bit(parts, lr=options.lr, min_8bit_size=options.min_8bit_size)

    order = torch.Generator().manual_seed(options.seed)
    progress = tqdm.trange(options.steps, desc="training", unit="step", disable=rank != 0)
    for _ in progress:
        batch = data[torch.randint(len(data), (options.batch,), generator=order)][rank::world].to(device)
        loss = network(input_ids=batch, labels=batch).loss
        loss.backward()
        for part, value in zip(parts, trained.values(), strict=True):
            part.grad, value.grad = local(value.grad), None
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")

    network.eval()
    with torch.no_grad():
        batch = data[: options.batch][rank::world].to(device)
        loss = network(input_ids=batch, labels=batch).loss.float() * (len(batch) / len(data[: options.batch]))
    if world > 1:
        dist.all_reduce(loss)
    if rank == 0:
        print(f"loss after {options.steps} steps: {loss.item():.6f}")
    if options.output:
        dcp.save({"adapter": trained}, checkpoint_id=options.output)
        if rank == 0:
            print(f"{options.output}: the adapter; --resume reads it, in as many processes as you like")
    if world > 1:
        # Wait for each other, and let go of DDP, before the group ends: gloo's threads may still need the interpreter.
        del network
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
