"""Benchmarks of the operators on this machine's XPU or CPU, ours against upstream's in the same run, in one table.

Without an Intel GPU they run on the virtual XPU: a CPU, where ratios and shares of bandwidth say how good the kernels
are there, and times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import pathlib
import sys

BENCHMARKS = (
    "dequantize_blockwise",
    "quantize_blockwise",
    "gemv_4bit",
    "gemm_4bit",
    "int8",
    "optimizer_32bit",
    "optimizer_8bit_blockwise",
)
# Those with rows for the CPU's own operators.
ON_CPU = ("dequantize_blockwise", "quantize_blockwise", "optimizer_32bit", "optimizer_8bit_blockwise")


def prepare() -> None:
    """Bring up the device, and what upstream's library needs to run on one that is a CPU; before torch is imported."""
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
    parser.add_argument("benchmark", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--device", choices=("xpu", "cpu"), default="xpu", help="whose operators (default: xpu)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.benchmark) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    names = arguments.benchmark or (BENCHMARKS if arguments.device == "xpu" else ON_CPU)
    if arguments.device == "xpu":
        prepare()
    elif missing := set(names) - set(ON_CPU):
        parser.error(f"no rows for the CPU in {', '.join(sorted(missing))}; there are in {', '.join(ON_CPU)}")
    import bitsandbytes  # noqa: F401
    from common import Report, measure_bandwidth

    report = Report(arguments.device)
    measure_bandwidth(report)
    for name in names:
        importlib.import_module(name).add_rows(report)
    report.show(arguments.json)


if __name__ == "__main__":
    main()
