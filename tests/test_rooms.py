"""Imports between the packages run one way, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import cvae_jax

PACKAGE = Path(cvae_jax.__file__).parent
# A package imports from the lines below its own.
ORDER = [
    {"__main__"},
    {"commands"},
    {"formats"},
    {"api"},
    {"training"},
    {"evaluation"},
    {"drawing"},
    {"storage"},
    {"models", "data"},
    {"runtime"},
    {"config", "keys", "noise", "errors"},
]
ROW = {name: row for row, names in enumerate(ORDER) for name in names}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "cvae_jax":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvae_jax."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cvae_jax.")}
    return rooms - {"__version__"}


def test_imports_run_one_way() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {room_of(path) for path in paths} == set(ROW)
    for path in paths:
        own = room_of(path)
        wrong = {room for room in imported_rooms(path) if room != own and ROW[room] <= ROW[own]}
        # The leaves of the last row may use each other.
        if ROW[own] != len(ORDER) - 1:
            assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_models_know_nothing_of_ours_but_settings_keys_and_noise() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        assert imported_rooms(path) <= {"models", "config", "keys", "noise"}, path.name


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {name.split(".")[0] for name in output.split()}


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    heavy = {"jax", "flax", "tensorflow_datasets", "matplotlib", "orbax"}
    assert not heavy & loaded_by("import cvae_jax, cvae_jax.commands.train, tyro")
    assert "tensorflow_datasets" not in loaded_by("import cvae_jax.training.loop, cvae_jax.api")
    assert not {"optax", "tensorflow_datasets"} & loaded_by("import cvae_jax.drawing.modes")
