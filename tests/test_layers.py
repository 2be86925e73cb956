"""The map in docs/architecture.md, kept true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cvae_jax

PACKAGE = Path(cvae_jax.__file__).parent

# Imports run from a row to rows above it only; modules of one row don't import each other.
LAYERS = [
    {"__init__", "types"},
    {
        "config",
        "files",
        "keys",
        "devices",
        "sharding",
        "processes",
        "progress",
        "stopping",
        "metrics",
    },
    {"options", "records", "idx", "models", "batches", "figures", "cli", "measures", "compiled"},
    {
        "workdir",
        "checkpoints",
        "tfds_source",
        "feeding",
        "plan",
        "objective",
        "sampling",
        "judge",
        "overview",
    },
    {"data", "outputs", "training", "evaluation", "trained", "sample_quality"},
    {"programs", "drawing", "likelihoods", "judges"},
    {"experiment", "assessment"},
]


def imported_modules(path: Path) -> set[str]:
    """Name the modules of the package that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "cvae_jax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvae_jax."):
            names.add((node.module or "").removeprefix("cvae_jax."))
    return names - {"__version__"}


def test_every_module_has_its_row() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set().union(*LAYERS)


@pytest.mark.parametrize("row", range(len(LAYERS)))
def test_imports_run_downwards_only(row: int) -> None:
    allowed: set[str] = set().union(*LAYERS[:row])
    for module in LAYERS[row]:
        forbidden = imported_modules(PACKAGE / f"{module}.py") - allowed
        assert not forbidden, f"{module} imports {forbidden}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_is_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {name.split(".")[0] for name in output.split()}


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    assert not {"jax", "tensorflow_datasets", "matplotlib", "orbax"} & loaded_by("import cvae_jax")
    # Nor by --help, or by an argument that can't be used.
    parsing = "from cvae_jax import cli, config\nwith cli.one_line_errors(): import tyro"
    assert not {"jax", "flax", "matplotlib", "orbax"} & loaded_by(parsing)
    assert "tensorflow_datasets" not in loaded_by("import cvae_jax.experiment, cvae_jax.drawing")
    assert not {"optax", "tensorflow_datasets"} & loaded_by("import cvae_jax.drawing")
