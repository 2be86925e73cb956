"""All claims about speed, measured by one command: `python benchmarks/run.py`.

It runs the benchmarks one after another, each in a process of its own, and writes the tables of
RESULTS.md from their results; twenty minutes on two cores. The results of a GPU or a TPU stand
beside the CPU's.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import pages, report
from cvae_jax.commands.cli import one_line_errors
from cvae_jax.config import require
from cvae_jax.errors import UserError
from cvae_jax.runtime.files import whole_file

_FOLDER = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the benchmarks of speed and write their page."""

    only: tuple[str, ...] = ()
    """Names of benchmarks. Default: all."""
    measure: bool = True
    """Measure anew; else the pictures and the page are made from the results that are there."""

    def __post_init__(self) -> None:
        for name in self.only:
            require(name in pages.BENCHMARKS, "only", name, f"from {', '.join(pages.BENCHMARKS)}")


def main() -> None:
    """Parse the arguments, run the benchmarks, write the page."""
    with one_line_errors():
        options = report.parse(Options)
        for name in options.only or pages.BENCHMARKS:
            if options.measure:
                print(f"=== {name}", flush=True)
                command = [sys.executable, str(_FOLDER / f"{name}.py")]
                if subprocess.run(command).returncode:
                    raise UserError(f"{name} failed; {pages.PAGE} stays as it was")
            else:
                for result_file, result in report.read(name).items():
                    report.save_picture(pages.BENCHMARKS[name].draw(result), result_file)
        text = pages.contents()
        with whole_file(pages.PAGE) as file:
            file.write(text.encode())
        print(f"wrote {pages.PAGE}")


if __name__ == "__main__":
    main()
