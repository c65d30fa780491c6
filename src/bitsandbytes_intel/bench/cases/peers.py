"""gemm_4bit on the CPU beside every peer that is installed.

ONNX Runtime (MatMulBnb4, which reads bitsandbytes' own NF4, and MatMulNBits, which does not and whose activations are
rounded to 8 bits at accuracy level 4), and torch's int4 product. Peers that do not run are named below the table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..common import BNB, Report, Run, name_of

OPERATORS = ("gemm_4bit",)
N = K = 4096
ROWS = (1, 4, 16, 128, 512)
# A product with an activation of so many rows.
Peer = Callable[[torch.Tensor], Run]


def torch_int4(report: Report, dtype: torch.dtype) -> Peer:
    """Torch's own product with 4-bit integers in groups of 64."""
    weights = report.rotation(
        lambda: torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (N, K), dtype=torch.int32), 2)
    )
    scales = torch.rand(K // 64, N, 2).to(dtype)
    return lambda x: lambda i: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weights[i % len(weights)], 64, scales)


def onnx_runtime(report: Report, dtype: torch.dtype, operator: str) -> Peer:
    """One node of ONNX Runtime, with torch's number of threads; float32, which is what it has on a CPU."""
    sessions = onnx_sessions(operator)

    def peer(x: torch.Tensor) -> Run:
        feed = {"A": x.numpy()}
        return lambda i: sessions[i % len(sessions)].run(None, feed)

    return peer


def onnx_sessions(operator: str, copies: int = 8) -> list[Any]:
    """Models of one node, each with a weight of its own."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    sessions = []
    for seed in range(copies):
        random = np.random.default_rng(seed)
        scales = random.random(N * K // 64, dtype=np.float32)
        if operator == "MatMulBnb4":
            codes = random.integers(0, 256, N * K // 2, dtype=np.uint8)
            attributes = {"K": K, "N": N, "block_size": 64, "quant_type": 1}
        else:
            codes = random.integers(0, 256, (N, K // 64, 32), dtype=np.uint8)
            attributes = {"K": K, "N": N, "bits": 4, "block_size": 64, "accuracy_level": 4}
        node = helper.make_node(operator, ["A", "B", "scales"], ["Y"], domain="com.microsoft", **attributes)
        graph = helper.make_graph(
            [node], "product",
            [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", K])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", N])],
            [numpy_helper.from_array(codes, "B"), numpy_helper.from_array(scales, "scales")],
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9
        )
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads are not to take the others' turns.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        sessions.append(
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        )
    return sessions


PEERS: dict[str, tuple[Callable[[Report, torch.dtype], Peer], tuple[torch.dtype, ...]]] = {
    "ONNX Runtime MatMulBnb4": (functools.partial(onnx_runtime, operator="MatMulBnb4"), (torch.float32,)),
    "ONNX Runtime MatMulNBits": (functools.partial(onnx_runtime, operator="MatMulNBits"), (torch.float32,)),
    "torch int4": (torch_int4, (torch.float32, torch.bfloat16)),
}


def add_rows(report: Report) -> None:
    """Ours in turns with each peer."""
    weights = report.packed(N, K)
    absmax = weights[0][1]
    for name, (make, dtypes) in PEERS.items():
        for dtype in report.some(dtypes, dtypes[-1]):
            try:
                peer = make(report, dtype)
                peer(torch.randn(1, K).to(dtype))(0)
            except Exception as error:
                report.notes.append(f"{name}, {name_of(dtype)}: {type(error).__name__}: {error}".splitlines()[0])
                continue
            for rows in report.some(ROWS, 1, 128):
                x = torch.randn(rows, K).to(dtype)
                report.time(
                    "gemm_4bit", f"M = {rows} {name_of(dtype)}",
                    lambda i, x=x: BNB.gemm_4bit(x, weights[i % len(weights)][0], (N, K), absmax, 64, "nf4"),
                    upstream=False, other=(name, peer(x)), rounds=5,
                    moved=N * K * (0.5 + 4 / 64), of="read", operations=2 * rows * N * K, unit=dtype,
                    other_most=1 if name == "ONNX Runtime MatMulBnb4" else None,
                )  # fmt: skip
