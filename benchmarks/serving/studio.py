"""The studio while a slider moves: pictures a second in a real browser, on the machine that serves them.

    python benchmarks/serving/studio.py out/avatars.bundle

Starts `diffusevae studio` on a free port and Chromium without a window, then moves the first slider to and fro. A picture
counts when the page has drawn it. Goal: 30 a second. The browser takes its share of the processors, as a user's would.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks.latency.report import percentiles
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.serving.http_server import HttpServer
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.places import check_file
from export.dates import now

GOAL = 30.0  # pictures a second
# Moves a slider to and fro with every frame of the page; the moments at which #focus was drawn, in milliseconds. The events
# are made in the page: moving the mouse from outside costs a processor of its own.
DRAG = """(slider, seconds) => new Promise(done => {
  const moments = [], began = performance.now();
  const middle = (+slider.max + +slider.min) / 2, reach = 0.45 * (slider.max - slider.min);
  const watcher = new MutationObserver(() => moments.push(performance.now()));
  watcher.observe(document.querySelector('#focus'), {attributes: true, attributeFilter: ['data-drawn']});
  const move = now => {
    if (now - began > 1000 * seconds) { watcher.disconnect(); done(moments); return; }
    slider.value = middle + reach * Math.sin(2 * Math.PI * (now - began) / 2000);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    requestAnimationFrame(move);
  };
  requestAnimationFrame(move);
})"""


def measure(bundle: Path, browser: Any, seconds: float, threads: int | None) -> dict[str, Any]:
    """Serve, browse, drag; `browser` is playwright's."""
    with HttpServer("studio", bundle.resolve(), threads) as server:
        page = browser.new_page(viewport={"width": 1240, "height": 1010})
        page.goto(server.address)
        page.locator("#wall-A[data-drawn]").wait_for()
        slider = page.locator("input[id^=direction-]:visible, input[id^=axis-]:visible").first
        slider.evaluate(DRAG, 1.0)  # the first pictures of a page are slower
        moments: list[float] = slider.evaluate(DRAG, seconds)
        network, name = page.locator("dd").first.inner_text(), slider.get_attribute("id")
        page.close()
    if len(moments) < 2:
        raise BenchmarkError(f"{bundle}: found {len(moments)} pictures in {seconds:g} s, expected many; free the machine")
    gaps = np.diff(moments)
    rate = round(1000 * len(gaps) / (moments[-1] - moments[0]), 2)
    return {
        "slider": name, "seconds": seconds, "pictures": len(moments), "pictures_a_second": rate,
        "gap_ms": percentiles(gaps), "network": network, "goal": GOAL, "good": rate >= GOAL,
    }  # fmt: skip


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", type=click.FloatRange(1), default=10.0, help="Of dragging.")
@click.option("--threads", type=int, default=None, help="[default: what affinity and container allow]")
@click.option("--out", type=Path, default=Path("out/studio.json"))
def main(bundle: Path, seconds: float, threads: int | None, out: Path) -> None:
    """Drag a slider of BUNDLE's studio."""
    from playwright.sync_api import sync_playwright

    check_file(out)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise BenchmarkError("found no chromium on the PATH, expected one to browse with; install it: apt install chromium")
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = measure(bundle, browser, seconds, threads)
        browser.close()
    head = {"format": "diffusevae-studio", "format_version": 1, "date": now(), "machine": facts}
    write_json(out, {**head, "model": Bundle.open(bundle).manifest.name, **found})
    verdict = "pass" if found["good"] else "miss"
    click.echo(
        f"{verdict}: {found['pictures_a_second']} pictures a second (goal {GOAL:g}); between two "
        f"{found['gap_ms']['p50']:.1f} ms, p99 {found['gap_ms']['p99']:.1f} ms; network {found['network']}"
    )
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
