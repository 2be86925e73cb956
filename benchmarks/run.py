"""All that we claim about speed, with one command: `python benchmarks/run.py`.

Runs the benchmarks one after another, each in a process of its own, and writes RESULTS.md and
README's table from what they found; twenty minutes on two cores. The results of a GPU
or a TPU stand beside the CPU's.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # to run however the package is installed

from benchmarks import pages, report
from cvae_jax import cli
from cvae_jax.files import whole_file
from cvae_jax.types import ConfigError, UserError

_FOLDER = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the benchmarks of speed and write their pages."""

    only: tuple[str, ...] = ()
    """Names of benchmarks. Left out: all."""
    measure: bool = True
    """Whether to measure; else pictures and pages are made from the results that are there."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in pages.BENCHMARKS:
                names = ", ".join(pages.BENCHMARKS)
                raise ConfigError(f"--only {name} can't be used; choose from {names}")


def main() -> None:
    """Parse the arguments, run what was asked for, write the pages."""
    with cli.one_line_errors():
        options = cli.parse(Options)
        for name in options.only or pages.BENCHMARKS:
            if options.measure:
                print(f"=== {name}", flush=True)
                command = [sys.executable, str(_FOLDER / f"{name}.py")]
                if subprocess.run(command).returncode:
                    raise UserError(f"{name} failed; the pages stay as they were")
            else:
                for file, result in report.read(name).items():
                    report.save_picture(pages.BENCHMARKS[name].draw(result), file)
        for page, text in pages.contents().items():
            with whole_file(page) as opened:
                opened.write(text.encode())
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
