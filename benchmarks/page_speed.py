"""How long the page to play with takes to draw ten digits in another hand, in a real Chromium.

`python benchmarks/page_speed.py`, a minute; it needs the extra `browser` and a Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import environment, plots, report
from benchmarks.report import Claim, Options, Result
from cvae_jax.config import Pretrained
from cvae_jax.errors import UserError

_REDRAWS = """async () => {
  const milliseconds = [];
  for (let i = 0; i < 100; i++) {
    play.state.mix = i / 100;
    const start = performance.now();
    await play.redraw();
    milliseconds.push(performance.now() - start);
  }
  return milliseconds.slice(20);  // by then they are compiled
}"""


def measure(options: Options, machine: Result) -> Result:
    """Open the page of each pretrained model, in turns, and redraw it with mixes of two hands."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("there is no Chromium here; install one (Debian: apt-get install chromium)")
    found: dict[str, Any] = {name: [] for name in get_args(Pretrained)}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as api:
        for name in found:
            command = [sys.executable, "-m", "cvae_jax", "page", "--pretrained", name]
            command += ["--out", f"{folder}/{name}.html"]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(options.rounds):
            for name, medians in found.items():
                page = browser.new_page()
                page.goto(f"file://{folder}/{name}.html")
                page.wait_for_function("window.play")
                medians.append(report.median(page.evaluate(_REDRAWS)))
                page.close()
        browser.close()
    return {"milliseconds": found}


def show(result: Result) -> str:
    """Return the table: the median over the rounds of the median of a page."""
    rows = [[name, str(report.spread(ms))] for name, ms in result["milliseconds"].items()]
    return report.table(["page of", "milliseconds for ten digits"], rows)


def claims(result: Result) -> list[Claim]:
    """Return the row of the summary: the page of the best model beside the original's."""
    best, original = (result["milliseconds"][name] for name in ("best", "original"))
    return [
        Claim(
            "ten digits in another hand, the page of `best`",
            f"{report.number(report.median(best))} ms",
            f"of the original: {report.number(report.median(original))} ms",
            f"{report.ratios(best, original)} times as long",
        )
    ]


def draw(result: Result) -> Figure:
    """Draw the picture."""
    title = f"Ten digits in another hand, {environment.name(result)}"
    return plots.bars(result["milliseconds"], title, "milliseconds")


if __name__ == "__main__":
    report.run("page_speed", Options, measure, show=show, draw=draw)
