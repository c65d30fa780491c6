"""A picture of the operators' times beside their limits."""

from __future__ import annotations

import pathlib

from .common import Report

_OURS, _UPSTREAM, _OTHER, _LIMIT = "#1f6fb4", "#b8bec6", "#e08a2b", "#c0392b"


def draw(reports: list[Report], file: pathlib.Path) -> None:
    """Write a PNG, a column for each report: a bar for each case, ours, upstream's, other rivals', and the limit.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    longest = max(len(report.rows) for report in reports)
    figure, axes = pyplot.subplots(
        1, len(reports), figsize=(11 * len(reports), 2.4 + 0.36 * longest), squeeze=False, layout="constrained"
    )
    for axis, report in zip(axes[0], reports, strict=True):
        labels = []
        for y, row in enumerate(report.rows):
            if row.upstream_ms:
                axis.barh(y, row.upstream_ms, height=0.78, color=_UPSTREAM, zorder=2)
            axis.barh(y, row.ours_ms, height=0.46, color=_OURS, zorder=3)
            if row.other_ms:
                axis.plot(row.other_ms, y, marker="D", markersize=5, color=_OTHER, zorder=5)
            if row.limit_ms:
                axis.plot([row.limit_ms] * 2, [y - 0.42, y + 0.42], color=_LIMIT, linewidth=2.2, zorder=4)
            notes = [f"{row.ratio:.3g} ×"] if row.ratio else []
            if row.limit_ms:
                notes.append(f"{row.limit_ms / row.ours_ms:.0%} of the limit")
            if row.other_ratio:
                notes.append(f"{row.other}: {row.other_ratio:.2g} ×")
            most = max(row.ours_ms, row.upstream_ms or 0, row.other_ms or 0, row.limit_ms or 0)
            axis.text(most * 1.15, y, ", ".join(notes), va="center", fontsize=8, color="#333333")
            labels.append(f"{row.operator}  {row.case}")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.55)  # room for the notes
        axis.set_xlabel("milliseconds a call, logarithmic")
        axis.grid(axis="x", color="#e5e5e5", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        head = report.head()
        axis.set_title(
            f"{report.device}: {head['device']}, {head['threads']} threads\n"
            f"copy {head['copy_gbps']} GB/s, read {head['read_gbps']} GB/s",
            fontsize=10, loc="left",
        )  # fmt: skip
    keys = [
        Patch(color=_OURS, label="ours"),
        Patch(color=_UPSTREAM, label="upstream (× : how many times faster ours is)"),
        Line2D([], [], color=_LIMIT, linewidth=2.2, label="limit: bytes / bandwidth, or operations / torch's best"),
        Line2D([], [], color=_OTHER, marker="D", linestyle="", label="another rival"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
