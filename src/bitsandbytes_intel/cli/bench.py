"""``python -m bitsandbytes_intel bench``: prints what :mod:`bitsandbytes_intel.bench` measures."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from . import environment
from .console import Output, Unusable
from .environment import Setup

_MODEL_ROWS = (
    # what, key, unit, factor, whether more is better
    ("decode", "decode_tokens_per_s", "tokens/s", 1.0, True),
    ("prefill of 128 tokens, all layers", "layers_s", "s", 1.0, False),
    ("prefill of 128 tokens, with the head", "prefill_s", "s", 1.0, False),
    ("QLoRA step, 1 x 256 tokens", "qlora_step_s", "s", 1.0, False),
    ("loading (quantising) the model", "load_s", "s", 1.0, False),
    ("peak memory, loading", "load_peak_bytes", "MB", 1e-6, False),
    ("peak memory, decode and prefill", "run_peak_bytes", "MB", 1e-6, False),
    ("peak memory, QLoRA", "qlora_peak_bytes", "MB", 1e-6, False),
)
_MEMORY_ROOM = 32 << 20  # what libraries take by chance, from run to run


def _progress(out: Output) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=out.log,
        disable=not out.log.is_terminal,
    )  # fmt: skip


def _require(*packages: str) -> None:
    """Raise Unusable for a package that is not installed."""
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Unusable(f"{package} is not installed: pip install 'bitsandbytes-intel[bench]'")


def run_operators(
    out: Output,
    setup: Setup,
    devices: tuple[str, ...],
    operators: frozenset[str],
    quick: bool,
    plot: pathlib.Path | None,
) -> bool:
    """Every operator of the devices against upstream's and other rivals', with what limits it."""
    from ..bench import common

    if plot is not None:
        _require("matplotlib")
    known = {name for module in common.CPU_BENCHMARKS for name in common.operators_of(module)}
    if unknown := operators - known:
        raise Unusable(f"--operator {', '.join(sorted(unknown))}: not known; there are {', '.join(sorted(known))}")
    reports = []
    with _progress(out) as progress:
        for device in devices:
            if device == "xpu":
                environment.require_xpu(setup)
            else:
                _require_cpu(rival=devices == ("cpu",))
            task = progress.add_task(f"{device}: bandwidth", total=1)

            def name_it(text: str, task: TaskID = task, device: str = device) -> None:
                progress.update(task, description=f"{device}: {text}")

            def begin(name: str, done: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total)

            report = common.Report(device, quick, operators, name_it)
            if device == "xpu":
                report.caller_processors = setup.caller_processors
            if not report.rival:
                report.notes.append(
                    "bitsandbytes has not loaded its library for CPUs beside the XPU and is left out here; "
                    "bench --device cpu measures it."
                )
            common.run(report, begin)
            progress.update(task, completed=1, total=1, description=f"{device}: done")
            reports.append(report)
    out.data.update(
        versions=environment.versions(), virtual_xpu=setup.virtual, quick=quick,
        devices={report.device: report.data() for report in reports},
    )  # fmt: skip
    for report in reports:
        head = report.head()
        if report.device == "xpu" and setup.virtual:
            out.show("No Intel GPU here: xpu is the virtual XPU, on this machine's CPU. Its ratios say something, its "
                     "times nothing of a GPU.")  # fmt: skip
        table = out.table(
            f"{report.device}: {', '.join(f'{key} {value}' for key, value in head.items())}",
            "operator", "case", "ours ms", "limit ms", "of it", "upstream ms", "× upstream", "another: × ours", "goal",
            right=("ours ms", "limit ms", "of it", "upstream ms", "× upstream"),
        )  # fmt: skip
        table.columns[0].no_wrap = True
        for row in report.rows:
            table.add_row(
                row.operator, row.case, f"{row.ours_ms:.3f}", f"{row.limit_ms:.3f}" if row.limit_ms else "",
                f"{row.limit_ms / row.ours_ms:.0%}" if row.limit_ms else "",
                f"{row.upstream_ms:.3f}" if row.upstream_ms else "", f"{row.ratio:.1f}" if row.ratio else "",
                f"{row.other}: {row.other_ratio:.2f}" if row.other_ratio else "",
                "" if row.met is None else f"{row.goal}: {'met' if row.met else 'missed'}",
            )  # fmt: skip
        out.show(table)
        for note in report.notes:
            out.show(note)
    if plot is not None:
        from ..bench.plot import draw

        try:
            draw(reports, plot)
        except OSError as error:
            raise Unusable(f"--plot {plot}: {error}") from error
        out.show(f"The picture is {plot}.")
    return True


def _require_cpu(rival: bool = True) -> None:
    """Raise Unusable where our operators do not answer on the CPU, or, if the rival is wanted, bitsandbytes' own."""
    from .. import ops
    from ..bench import common

    if "cpu" not in ops.registered():
        raise Unusable(f"our operators are not registered on cpu: {ops.failures().get('cpu', 'unknown reason')}")
    if rival and not common.has_upstream():
        raise Unusable(
            "bitsandbytes has not loaded its own library, so that plain torch would answer for it, several times "
            "slower. Where it looks for a GPU's, which is not installed, CUDA_VISIBLE_DEVICES= (empty) makes it load "
            "the CPU's."
        )


def run_model(out: Output, size: str, isa: str | None, threads: int | None, quick: bool) -> bool:
    """A whole model, upstream and ours in turn; False if ours needs more memory than upstream."""
    import torch

    from .. import cpu
    from ..bench import whole_model

    _require("transformers", *(() if quick else ("peft",)))
    _require_cpu()
    if isa is not None and isa not in cpu.isas():
        raise Unusable(f"--isa {isa}: this CPU has no more than {list(cpu.isas())[-1]}")
    threads = threads or torch.get_num_threads()
    figures: dict[str, dict[str, Any]] = {}
    with _progress(out) as progress:
        task = progress.add_task("", total=len(whole_model.SIDES) * (3 if quick else 4))
        for side in whole_model.SIDES:
            try:
                for message in whole_model.measure(side, size, threads=threads, isa=isa, train=not quick):
                    if "stage" in message:
                        progress.update(task, advance=1, description=f"{side}: {message['stage']}")
                    else:
                        figures[side] = message["result"]
            except whole_model.WorkerFailed as error:
                raise Unusable(str(error)) from error
    upstream, ours = figures["upstream"], figures["ours"]
    rows: list[dict[str, Any]] = []
    for what, key, unit, factor, more in _MODEL_ROWS:
        if key in ours:
            ratio = ours[key] / upstream[key] if more else upstream[key] / ours[key]
            rows.append(
                {"what": what, "unit": unit, "upstream": upstream[key] * factor, "ours": ours[key] * factor,
                 "ratio": ratio}
            )  # fmt: skip
    held = all(ours[key] <= upstream[key] + _MEMORY_ROOM for key in ours if key.endswith("_peak_bytes"))
    out.data.update(
        versions=environment.versions(), cpu=environment.cpu_name(), threads=threads, isa=ours["isa"], size=size,
        parameters=ours["parameters"], upstream=upstream, ours=ours, rows=rows, memory_held=held,
    )  # fmt: skip
    out.show(f"Llama of {ours['parameters'] / 1e9:.2f} B parameters, random weights, NF4 nested, bfloat16, on cpu:")
    out.show(f"{environment.cpu_name()}, {threads} threads, held to {ours['isa']}." if isa else
             f"{environment.cpu_name()}, {threads} threads, {ours['isa']}.")  # fmt: skip
    out.show(f"Each side in a process of its own. Upstream's weights: {upstream['layout']}.")
    table = out.table(
        "A whole model", "what", "unit", "upstream", "ours", "× better", right=("upstream", "ours", "× better")
    )
    for row in rows:
        table.add_row(
            row["what"], row["unit"], f"{row['upstream']:.4g}", f"{row['ours']:.4g}", f"{row['ratio']:.2f}"
        )  # fmt: skip
    out.show(table)
    out.show()
    out.show("Peak memory is no higher than upstream's." if held else "FAILED: peak memory is higher than upstream's.")
    return held


def run_accuracy(out: Output, steps: int, windows: int) -> bool:
    """What 4 and 8 bits cost two models; False if our operators do worse than CUDA's arithmetic."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _require("transformers")
    import transformers

    from ..bench import accuracy
    from . import model as encoder_model
    from .sentences import GROUPS

    _require_cpu()
    place = encoder_model.folder()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(
        place, local_files_only=True, dtype="float32", add_pooling_layer=False
    ).eval()
    sentences = [sentence for group in GROUPS.values() for sentence in group]
    ways = len(accuracy.KINDS) * len(accuracy.IMPLEMENTATIONS)
    with _progress(out) as progress:
        task = progress.add_task("training a language model of bytes", total=steps)
        language = accuracy.train_language_model(steps, lambda: progress.advance(task))
        text = accuracy.held_out(windows)
        task = progress.add_task("quantising and running it", total=ways)
        perplexity, found = accuracy.costs(
            "language model", language, lambda model: accuracy.read(model, text), lambda: progress.advance(task)
        )
        task = progress.add_task("quantising and running MiniLM", total=ways)
        _, more = accuracy.costs(
            "MiniLM", encoder, lambda model: (accuracy.encode(model, tokenizer, sentences), None),
            lambda: progress.advance(task),
        )  # fmt: skip
        found += more
    checks = accuracy.no_worse(found)
    results: list[dict[str, Any]] = [
        {"what": what, "value": value, "bound": most, "held": value <= most} for what, value, most in checks
    ]
    same = all(each.same_codes for each in found if each.implementation == "ours")
    results.append({"what": "every code is CUDA's", "value": same, "bound": True, "held": same})
    out.data.update(
        versions=environment.versions(), cpu=environment.cpu_name(), training_steps=steps,
        full_precision_perplexity=perplexity, costs=[vars(each) for each in found], checks=results,
    )  # fmt: skip
    out.show(f"The language model was trained for {steps} steps; in float32 a held-out byte has perplexity "
             f"{perplexity:.3f}.")  # fmt: skip
    table = out.table(
        "What quantisation costs, against float32", "model", "kind", "by", "relative error", "perplexity",
        "codes are CUDA's", right=("relative error", "perplexity"),
    )  # fmt: skip
    for each in found:
        table.add_row(
            each.model, each.kind, each.implementation, f"{each.error:.5f}",
            "" if each.perplexity is None else f"{each.perplexity:.4f}", "yes" if each.same_codes else "no",
        )  # fmt: skip
    out.show(table)
    failed = [str(row["what"]) for row in results if not row["held"]]
    out.show()
    out.show(f"FAILED: worse than CUDA's: {', '.join(failed)}." if failed else "Ours is no worse than CUDA's anywhere.")
    return not failed
