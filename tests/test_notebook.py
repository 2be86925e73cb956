"""The notebook, from top to bottom in small, and its first cell where it may find itself."""

import base64
import importlib.metadata
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "cvae_jax_on_colab_tpu.ipynb"
MOST_BYTES = 1_000_000

nbformat = pytest.importorskip("nbformat", reason="it comes with the extra `notebook`")
nbclient = pytest.importorskip("nbclient", reason="it comes with the extra `notebook`")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def cell_of(notebook: Any, text: str) -> Any:
    (found,) = (one for one in notebook.cells if text in one.source)
    return found


def execute(notebook: Any, folder: Path) -> Any:
    """Run a notebook in a folder with few epochs, which are saved in folder/drive."""
    settings = cell_of(notebook, "EPOCHS = 100")
    for old, new in (
        ("EPOCHS = 100", "EPOCHS = 3"),
        ("SAVE_EVERY = 10", "SAVE_EVERY = 1"),
        ("DRIVE = None", "DRIVE = Path('drive')"),
    ):
        assert old in settings.source
        settings.source = settings.source.replace(old, new)
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


def pictures(notebook: Any) -> list[Any]:
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/"):
                    found.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def test_it_runs_from_top_to_bottom_and_goes_on_after_a_disconnect(tmp_path: Path) -> None:
    done = execute(read(), tmp_path)
    shown = pictures(done)
    assert len(shown) >= 10
    assert all(picture.width <= 800 for picture in shown)
    assert (tmp_path / "play.html").stat().st_size > 1_000_000
    run = tmp_path / "runs" / "mnist-original"
    saved = sorted((tmp_path / "drive").iterdir())
    assert [one.name for one in saved] == [f"mnist-original_{n:05}.zip" for n in (2, 3)]

    # The disk is lost, and the newest zip is damaged: training goes on from the second epoch.
    metrics = (run / "metrics.csv").read_text().splitlines()
    contents = saved[1].read_bytes()
    middle = len(contents) // 2
    saved[1].write_bytes(contents[:middle] + bytes(1000) + contents[middle + 1000 :])
    run.rename(tmp_path / "lost")
    again = read()
    again.cells = again.cells[: again.cells.index(cell_of(again, "restore()\nbegun")) + 1]
    execute(again, tmp_path)
    resumed = (run / "metrics.csv").read_text().splitlines()
    assert resumed[:3] == metrics[:3]
    # All but the seconds.
    assert resumed[3].rpartition(",")[0] == metrics[3].rpartition(",")[0]


def test_it_is_stored_with_its_pictures_and_is_small() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert len(pictures(read())) >= 10
    errors = [
        output
        for cell in read().cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert not errors


@pytest.mark.parametrize("where", ["clone", "folder", "zip", "wheel"])
def test_its_first_cell_finds_what_to_install(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cell_of(read(), "def find_project").source
    asked: list[Any] = []
    project = tmp_path / "cvae_jax-main"
    if where == "wheel":
        expected = tmp_path / "cvae_jax-1.0-py3-none-any.whl"
        expected.touch()
    else:
        (project / "cvae_jax").mkdir(parents=True)
        (project / "cvae_jax" / "api.py").touch()
        (project / "notebooks").mkdir()
        expected = project
    if where == "zip":
        with zipfile.ZipFile(tmp_path / "cvae_jax-main.zip", "w") as file:
            file.write(project / "cvae_jax" / "api.py", "cvae_jax-main/cvae_jax/api.py")
        project.rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    monkeypatch.chdir(project / "notebooks" if where == "clone" else tmp_path)

    def version(package: str) -> str:
        if package == "jax" or asked:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command))
    exec(compile(source, "first cell", "exec"), {})
    assert asked == [[sys.executable, "-m", "pip", "install", "--quiet", expected]]


def test_its_first_cell_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit, match="Upload its folder, its zip file or its wheel"):
        exec(compile(cell_of(read(), "def find_project").source, "first cell", "exec"), {})
