"""Pictures of the results of the benchmarks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks import report

_OURS, _OTHERS, _FLOORS = "#1f6fb4", "#9aa5b1", "#c2410c"
_STYLES = ("-", "--", ":", "-.")


def bars(
    seconds: Mapping[str, Sequence[float]],
    title: str,
    label: str,
    *,
    floors: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Draw a bar for each side: the median, a whisker over all rounds, and floors as lines.

    Args:
        seconds: of each side, by its name.
        title: of the figure.
        label: of the axis of the seconds.
        floors: likewise, for the lines.
    """
    floors = floors or {}
    height = 1.3 + 0.5 * len(seconds) + 0.24 * len(floors)
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    spreads = {name: report.spread(values) for name, values in seconds.items()}
    axes.barh(
        list(spreads),
        [one.median for one in spreads.values()],
        xerr=[
            [one.median - one.least for one in spreads.values()],
            [one.most - one.median for one in spreads.values()],
        ],
        color=[_OURS if name.startswith(report.OURS) else _OTHERS for name in spreads],
        capsize=3,
        height=0.6,
    )
    for row, one in enumerate(spreads.values()):
        axes.annotate(
            report.number(one.median),
            (one.most, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    for (name, values), style in zip(floors.items(), _STYLES, strict=False):
        median = report.spread(values).median
        line = f"{name}: {report.number(median)}"
        axes.axvline(median, color=_FLOORS, linestyle=style, linewidth=1.3, label=line)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(one.most for one in spreads.values()))
    axes.set_xlabel(label)
    axes.grid(axis="x", linestyle="--", alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    if floors:
        figure.legend(loc="outside lower center", fontsize="small")
    return figure


def curves(values: Mapping[str, Sequence[float]], title: str, x: str, y: str) -> Figure:
    """Draw values of each side, numbered from 1; the first twentieth may lie outside."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (name, ones), color in zip(values.items(), (_OURS, _FLOORS), strict=False):
        axes.plot(range(1, len(ones) + 1), ones, color=color, label=name, linewidth=1.3)
    rest = [value for ones in values.values() for value in ones[len(ones) // 20 :]]
    axes.set_ylim(min(rest) - 0.5, max(rest) + 0.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(linestyle="--", alpha=0.5)
    axes.legend()
    figure.suptitle(title)
    return figure


class Curve(NamedTuple):
    """A cost against a size."""

    sizes: Sequence[float]
    costs: Sequence[float]


def panels(rows: Mapping[str, Mapping[str, Curve]], title: str) -> Figure:
    """Draw costs against sizes, both logarithmic, with a line of costs in proportion to the size.

    Args:
        rows: the rows of panels by the name of their cost, each by the name of the size.
        title: of the figure.
    """
    num_columns = max(len(row) for row in rows.values())
    size = (3.6 * num_columns, 0.6 + 2.7 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), num_columns, sharey="row", squeeze=False)
    for axes_row, (cost, row) in zip(grid, rows.items(), strict=True):
        axes_row[0].set_ylabel(cost)
        for axes, (size_name, curve) in zip(axes_row, row.items(), strict=True):
            _draw_curve(axes, curve)
            axes.set_xlabel(size_name)
    grid[0][0].legend(fontsize="small")
    figure.suptitle(title)
    return figure


def _draw_curve(axes: Axes, curve: Curve) -> None:
    sizes, costs = curve
    axes.loglog(sizes, costs, "o-", color=_OURS, label="measured")
    proportional = [costs[0] * size / sizes[0] for size in sizes]
    axes.loglog(sizes, proportional, ":", color=_FLOORS, label="in proportion")
    axes.set_xticks(sizes)
    axes.xaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: report.number(value)))
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(linestyle="--", alpha=0.5)
