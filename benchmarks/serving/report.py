"""The report of a serving run: a row for each way and number of clients, a table for people, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import figures
from benchmarks.latency.report import percentiles
from engine.triton.statistics import STAGES

if TYPE_CHECKING:
    from benchmarks.serving.run import Tally, Way

COLORS = {"native": "#009E73", "onnxruntime": "#0072B2", "openvino": "#CC79A7"}
QUEUE, COMPUTE = "#E69F00", "#56B4E9"


def rows(ways: Sequence[Way], tallies: Mapping[tuple[str, int], Tally]) -> list[dict[str, Any]]:
    """One row for each way and number of clients; the ratio is against the same backend with batches of one."""
    found = [_row(way, clients, tallies[name, clients]) for way in ways for name, clients in tallies if name == way.name]
    single = {(row["backend"], row["clients"]): row["images_per_second"] for row in found if not row["batched"]}
    for row in found:
        base = single.get((row["backend"], row["clients"]))
        row["against_single"] = round(row["images_per_second"] / base, 3) if base else None
    return found


def _row(way: Way, clients: int, tally: Tally) -> dict[str, Any]:
    outcome, counted = tally.outcome, tally.counted
    requests = sum(added.requests for added in counted)
    executions = sum(added.executions for added in counted)

    def mean_ms(stage: str) -> float:
        return round(1e3 * sum(added.seconds[stage] for added in counted) / max(requests, 1), 4)

    return {
        "model": way.name,
        "backend": way.settled.backend,
        "precision": way.precision,
        "batched": way.batched,
        "clients": clients,
        "requests": len(outcome.milliseconds) + len(outcome.errors),
        "errors": len(outcome.errors),
        "first_errors": sorted(set(outcome.errors))[:3],
        "seconds": round(outcome.seconds, 3),
        "images_per_second": round(len(outcome.milliseconds) / outcome.seconds, 3),
        "latency_ms": percentiles(outcome.milliseconds or [0.0]),
        "server_ms": {stage: mean_ms(stage) for stage in STAGES},
        "mean_batch": round(sum(added.samples for added in counted) / max(executions, 1), 3),
    }


def table(result: Mapping[str, Any]) -> str:
    """The whole result as text."""
    head = (
        f"{'model':<20} {'clients':>7} {'images/s':>9} {'p50':>8} {'p90':>8} {'p99':>8} {'queue':>8} {'compute':>8} "
        f"{'batch':>6} {'against single':>15} {'requests':>9} {'errors':>7}"
    )
    lines = [head]
    for row in result["results"]:
        latency, ratio = row["latency_ms"], f"{row['against_single']:.2f}x" if row["against_single"] else "-"
        lines.append(
            f"{row['model']:<20} {row['clients']:>7} {row['images_per_second']:>9.1f} {latency['p50']:>8.1f} "
            f"{latency['p90']:>8.1f} {latency['p99']:>8.1f} {row['server_ms']['queue']:>8.1f} {_compute(row):>8.1f} "
            f"{row['mean_batch']:>6.2f} {ratio:>15} {row['requests']:>9} {row['errors']:>7}"
        )
    batching, setting = result["batching"], result["setting"]
    lines.append(
        f"milliseconds; queue and compute are the server's own means; one image a request, {setting['steps']} steps; "
        f"batches of up to {batching['max_batch']}, delay {batching['delay_us'] / 1e3:g} ms; "
        f"Triton {result['server']['triton']}"
    )
    return "\n".join(lines)


def _compute(row: Mapping[str, Any]) -> float:
    return float(sum(row["server_ms"][stage] for stage in STAGES if stage != "queue"))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Throughput and latency against clients, batched and not; and where the time of a request goes on the server."""
    pyplot = figures.open_pyplot()
    figure, (speed, wait, split) = pyplot.subplots(1, 3, figsize=(15, 4.6))
    backends = list(dict.fromkeys(row["backend"] for row in result["results"]))
    clients = sorted({row["clients"] for row in result["results"]})
    for model in dict.fromkeys(row["model"] for row in result["results"]):
        _draw_way(speed, wait, [row for row in result["results"] if row["model"] == model], model.replace("_", ", "))
    for axes, title, label in (
        (speed, "Throughput", "images a second"), (wait, "Latency: median, and p99 dotted", "milliseconds"),
    ):  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(number) for number in clients])
        axes.set_xlabel("concurrent clients")
        axes.set_ylabel(label)
        _frame(axes, title)
    speed.set_ylim(0, 1.45 * max(row["images_per_second"] for row in result["results"]))  # room for the legend
    wait.set_yscale("log")
    wait.yaxis.set_major_formatter("{x:g}")
    speed.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    triton = [row for row in result["results"] if row["backend"] == backends[0] and not row["model"].endswith("_http")]
    _draw_split(split, triton, clients)
    _frame(split, f"Where a request's time goes ({backends[0]})")
    batching, setting = result["batching"], result["setting"]
    figure.suptitle(
        f"Triton {result['server']['triton']} on {result['machine']['processor']}, "
        f"{result['machine']['processors']} processors, shared with the clients; {setting['steps']} steps, one image a "
        f"request; batches of up to {batching['max_batch']}, delay {batching['delay_us'] / 1e3:g} ms",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    figure.tight_layout()
    figures.save_figure(pyplot, figure, path)


def _frame(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=figures.GRID)
    axes.set_axisbelow(True)


def _draw_way(speed: Any, wait: Any, found: Sequence[Mapping[str, Any]], label: str) -> None:
    if not found:
        return
    color = COLORS.get(found[0]["backend"], "#7f7f7f")
    marker, line = ("o", "-") if found[0]["batched"] else ("s", "--")
    if found[0]["model"].endswith("_http"):
        marker, line = "^", "-."
    style = {"color": color, "marker": marker, "linestyle": line}
    clients = [row["clients"] for row in found]
    speed.plot(clients, [row["images_per_second"] for row in found], label=label, linewidth=2, **style)
    wait.plot(clients, [row["latency_ms"]["p50"] for row in found], linewidth=2, **style)
    wait.plot(clients, [row["latency_ms"]["p99"] for row in found], color=color, linestyle=":", linewidth=1.2)


def _draw_split(axes: Any, found: Sequence[Mapping[str, Any]], clients: Sequence[int]) -> None:
    """Two stacked bars for each number of clients: batched at the left, one by one (hatched) at the right."""
    for row in found:
        place = 2.6 * clients.index(row["clients"]) + (-0.48 if row["batched"] else 0.48)
        compute, hatch = _compute(row), "" if row["batched"] else "///"
        total = compute + row["server_ms"]["queue"]
        axes.bar(place, compute, color=COMPUTE, width=0.9, hatch=hatch, edgecolor="white", linewidth=0)
        axes.bar(
            place, row["server_ms"]["queue"], bottom=compute, color=QUEUE, width=0.9, hatch=hatch, edgecolor="white",
            linewidth=0,
        )  # fmt: skip
        axes.annotate(f"{total:.0f}", (place, total), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks([2.6 * i for i in range(len(clients))], [str(number) for number in clients])
    axes.set_xlabel("concurrent clients")
    axes.set_ylabel("milliseconds on the server, mean")
    handles = [
        axes.bar(0, 0, color=QUEUE, label="waiting in the queue"),
        axes.bar(0, 0, color=COMPUTE, label="computing: its whole batch"),
        axes.bar(0, 0, color="#bbbbbb", hatch="///", edgecolor="white", linewidth=0, label="hatched: one by one"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, loc="upper left")
