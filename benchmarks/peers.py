"""Products with 4-bit weights on the CPU, ours beside every peer that is installed, in one run and one table.

    python benchmarks/peers.py [--rows 1 16 128] [--json]

Upstream's operator, ONNX Runtime (MatMulBnb4, which reads bitsandbytes' own NF4, and MatMulNBits, which does not and
whose activations are rounded to 8 bits at accuracy level 4), and torch's int4 product. The operands rotate, so that
the weights come from memory as in a model. Peers that are not installed are named (pip install onnx onnxruntime).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import bitsandbytes  # noqa: F401
import torch
from rich.console import Console
from rich.table import Table

from bitsandbytes_intel import ops

N = K = 4096
COPIES = 8
Run = Callable[[int], object]


def ours(x: torch.Tensor) -> Run:
    """gemm_4bit, whoever answers."""
    codes = [torch.randint(0, 256, (N * K // 2, 1), dtype=torch.uint8) for _ in range(COPIES)]
    absmax = torch.rand(N * K // 64)
    return lambda i: torch.ops.bitsandbytes.gemm_4bit(x, codes[i % COPIES], (N, K), absmax, 64, "nf4")


def torch_int4(x: torch.Tensor) -> Run:
    """Torch's own product with 4-bit integers in groups of 64."""
    weights = [torch.randint(0, 256, (N, K // 2), dtype=torch.uint8) for _ in range(COPIES)]
    made = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(w.repeat(1, 2).int() % 16, 2) for w in weights]
    scales = torch.rand(K // 64, N, 2).to(x.dtype)
    return lambda i: torch.ops.aten._weight_int4pack_mm_for_cpu(x, made[i % COPIES], 64, scales)


def onnx_runtime(x: torch.Tensor, operator: str) -> Run:
    """One node of ONNX Runtime, with torch's number of threads; float32, which is what it has on a CPU."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    sessions = []
    for seed in range(COPIES):
        random = np.random.default_rng(seed)
        scales = random.random(N * K // 64, dtype=np.float32)
        if operator == "MatMulBnb4":
            packed = random.integers(0, 256, N * K // 2, dtype=np.uint8)
            attributes = {"K": K, "N": N, "block_size": 64, "quant_type": 1}
        else:
            packed = random.integers(0, 256, (N, K // 64, 32), dtype=np.uint8)
            attributes = {"K": K, "N": N, "bits": 4, "block_size": 64, "accuracy_level": 4}
        node = helper.make_node(operator, ["A", "B", "scales"], ["Y"], domain="com.microsoft", **attributes)
        graph = helper.make_graph(
            [node], "product",
            [helper.make_tensor_value_info("A", TensorProto.FLOAT, list(x.shape))],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [x.shape[0], N])],
            [numpy_helper.from_array(packed, "B"), numpy_helper.from_array(scales, "scales")],
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9
        )
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        sessions.append(
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        )
    feed = {"A": x.float().numpy()}
    return lambda i: sessions[i % COPIES].run(None, feed)


PEERS: dict[str, Callable[[torch.Tensor], Run]] = {
    "ours": ours,
    "upstream": ours,
    "ONNX Runtime MatMulBnb4": lambda x: onnx_runtime(x, "MatMulBnb4"),
    "ONNX Runtime MatMulNBits": lambda x: onnx_runtime(x, "MatMulNBits"),
    "torch int4": torch_int4,
}


def measure(rows: int, dtype: torch.dtype, rounds: int = 9) -> dict[str, float | str]:
    """Median milliseconds of each peer, in turns, or why it did not run."""
    x = torch.randn(rows, K).to(dtype)
    runs: dict[str, Run] = {}
    found: dict[str, float | str] = {}
    for name, make in PEERS.items():
        if name.startswith("ONNX") and dtype != torch.float32:
            continue
        try:
            runs[name] = make(x)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            ops.unregister() if name == "upstream" else ops.register()
            for i in range(3):
                start = time.perf_counter()
                run(3 * turn + i)
                if turn:
                    times[name].append(1e3 * (time.perf_counter() - start))
    ops.register()
    return found | {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128], help="rows of the activation")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows in arguments.rows:
            results.append({"rows": rows, "dtype": str(dtype).removeprefix("torch."), **measure(rows, dtype)})
    if arguments.json:
        print(json.dumps({"shape": [N, K], "threads": torch.get_num_threads(), "milliseconds": results}, indent=1))
        return
    table = Table(title=f"{N} x {K}, blocksize 64, {torch.get_num_threads()} threads: milliseconds (× ours)")
    for heading in ("dtype", "rows", *PEERS):
        table.add_column(heading, justify="right")
    for each in results:
        cells = [each["dtype"], str(each["rows"])]
        for name in PEERS:
            value = each.get(name, "-")
            mine = each["ours"]
            cells.append(value if isinstance(value, str) else f"{value:.2f} ({value / mine:.1f})")
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
