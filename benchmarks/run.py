"""Benchmarks of the operators on this machine's XPU or CPU, ours against upstream's in the same run, in one table.

Without an Intel GPU, `xpu` is the virtual XPU: a CPU, where ratios and shares of bandwidth say how good the kernels are
there, and times say nothing about a GPU. BNB_INTEL_ISA and ONEDNN_MAX_CPU_ISA hold the CPU's operators, and those of
torch, to fewer instructions than the CPU has.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import os
import pathlib
import sys

BENCHMARKS = (
    "gemm_4bit",
    "gemv_4bit",
    "quantize_blockwise",
    "dequantize_blockwise",
    "int8",
    "optimizer_8bit_blockwise",
    "optimizer_32bit",
)
# Of the CPU alone.
CPU_BENCHMARKS = (*BENCHMARKS, "peers")


def prepare() -> None:
    """Bring up the XPU, and what upstream's library needs to run on one that is a CPU; before torch is imported."""
    torch = importlib.util.find_spec("torch")
    if torch is not None and not any(pathlib.Path(torch.origin).parent.glob("lib/libtorch_xpu.*")):
        os.environ.setdefault("BNB_INTEL_VIRTUAL_XPU", "1")
    os.environ.setdefault("SYCL_PROGRAM_COMPILE_OPTIONS", "-cl-std=CL3.0")
    for name in ("libintlc.so.5", "libirng.so", "libimf.so", "libsvml.so"):
        path = pathlib.Path(sys.prefix) / "lib" / name
        if path.exists():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", nargs="*", metavar="BENCHMARK",
                        help=f"of {', '.join(BENCHMARKS)}, and on the CPU peers (default: all)")  # fmt: skip
    parser.add_argument("--device", choices=("xpu", "cpu"), default="xpu", help="whose operators (default: xpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch and upstream (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    there = BENCHMARKS if arguments.device == "xpu" else CPU_BENCHMARKS
    if unknown := set(arguments.benchmark) - set(there):
        parser.error(f"no benchmark {', '.join(sorted(unknown))} on {arguments.device}; there are {', '.join(there)}")
    if arguments.threads is not None:
        if arguments.threads < 1:
            parser.error(f"--threads must be at least 1, got {arguments.threads}")
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by torch and by upstream's library
    if arguments.device == "xpu":
        prepare()
    else:
        os.environ["BNB_INTEL_VIRTUAL_XPU"] = "0"
    import bitsandbytes  # noqa: F401
    from common import Report, measure_bandwidth

    report = Report(arguments.device)
    measure_bandwidth(report)
    for name in arguments.benchmark or there:
        importlib.import_module(name).add_rows(report)
    report.show(arguments.json)


if __name__ == "__main__":
    main()
