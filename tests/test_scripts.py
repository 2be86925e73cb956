"""The two commands of the README, as a user types them, on all of MNIST."""

import csv
import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from cvae_jax.data import load_dataset
from cvae_jax.options import RunOptions
from tests.test_files import contents

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the original was trained for one epoch on all of MNIST."""
    home = tmp_path_factory.mktemp("a home with spaces")
    done = run("train.py", "--epochs", 1, "--sample-every", 1, cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_one_epoch_reaches_what_the_original_reaches(home: Path) -> None:
    with (home / "runs/mnist/metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "469"
    # PyTorch's original after its first epoch: 159.5 on train and 126.2 on test.
    assert float(row["train_loss"]) == pytest.approx(159.5, abs=3)
    assert float(row["test_loss"]) == pytest.approx(126.2, abs=2)


def test_the_workdir_holds_what_the_readme_says(home: Path) -> None:
    # The lock is free, yet its file stays: to delete it could let two processes have it.
    assert {path.name for path in (home / "runs/mnist").iterdir()} - {".lock"} == {
        "config.json",
        "metrics.csv",
        "loss.png",
        "samples",
        "checkpoints",
    }
    assert (home / "runs/mnist/checkpoints/469").is_dir()
    assert (home / "runs/mnist/samples/epoch_001.png").is_file()


def test_a_second_run_says_that_nothing_is_left(home: Path) -> None:
    done = run("train.py", "--epochs", 1, cwd=home)
    assert done.returncode == 0
    assert "nothing left to do" in done.stdout


def test_samples_of_a_digit_look_most_like_that_digit(home: Path) -> None:
    done = run("sample.py", "--num", 500, "--npz", "set.npz", cwd=home)
    assert done.returncode == 0, done.stderr
    assert not (home / "runs/mnist/digits.png").exists()
    with np.load(home / "set.npz", allow_pickle=False) as arrays:
        image, label = arrays["image"], arrays["label"]
    assert image.shape == (500, 28, 28, 1)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, np.arange(500) % 10)
    # For most classes, after one epoch, the mean sample is nearer to the mean real image of that
    # class than to any other's: the right digit, the right way up. By chance one would be.
    real = load_dataset(source="bundled").train
    means = np.stack([np.asarray(real.image)[real.label == y].mean(0) / 255 for y in range(10)])
    drawn = np.stack([image[label == y].mean(0) for y in range(10)])
    distances = np.square(drawn[:, np.newaxis] - means[np.newaxis]).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(10)).sum() >= 7


@pytest.mark.parametrize(
    ("arguments", "picture"),
    [((), "runs/mnist/digits.png"), (("--digit", 6), "runs/mnist/digit_6.png")],
)
def test_a_picture_is_drawn(arguments: tuple[object, ...], picture: str, home: Path) -> None:
    done = run("sample.py", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    assert f"wrote {picture}" in done.stdout
    assert np.asarray(imread(home / picture)).std() > 0.1


def test_the_same_seed_draws_the_same_images(home: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ("--digit", 4, "--seed", seed, "--npz", f"{name}.npz", "--out", f"{name}.png")
        assert run("sample.py", *arguments, cwd=home).returncode == 0
    images = {name: np.load(home / f"{name}.npz")["image"] for name in "abc"}
    np.testing.assert_array_equal(images["a"], images["b"])
    assert (home / "a.png").read_bytes() == (home / "b.png").read_bytes()
    assert np.abs(images["a"] - images["c"]).max() > 0.5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--digit", 10), 2, "--digit 10 does not exist in mnist; choose 0 to 9"),
        (("--digit", -1), 2, "--digit -1 does not exist in mnist; choose 0 to 9"),
        (("--step", 5), 2, "--step 5 is not in runs/mnist/checkpoints; choose one of [469]"),
        (("--num", 10**6), 2, "too many for a picture"),
        (("--out", "runs/mnist/config.json/a.png"), 2, "runs/mnist/config.json is a file"),
        (("--workdir", "none"), 2, "python scripts/train.py --workdir none"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: tuple[object, ...], status: int, message: str, home: Path
) -> None:
    done = run("sample.py", *arguments, cwd=home)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


NO_FOLDER = ["file", "file/below", "loop", "loop/below", "~nosuchuser", "x" * 300, "x/" * 3000]
BAD_PATHS = {
    "workdir": [*NO_FOLDER, "link to nothing", "link to nothing/below", "device"],
    "data_dir": [*NO_FOLDER, "nowhere", "link to nothing", "device"],
}


def test_every_path_that_training_takes_is_tried_here() -> None:
    paths = {field.name for field in dataclasses.fields(RunOptions) if "Path" in str(field.type)}
    assert paths == set(BAD_PATHS)


@pytest.mark.parametrize(
    ("option", "path"),
    [(option, path) for option, paths in BAD_PATHS.items() for path in paths],
    ids=lambda value: value[:20],
)
def test_a_path_that_training_cannot_use_gets_one_line_and_nothing_is_made(
    option: str,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link to nothing").symlink_to("nothing")
    before = contents(tmp_path)
    script, name = str(SCRIPTS / "train.py"), f"--{option.replace('_', '-')}"
    source = ["--source", "idx"] if option == "data_dir" else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, name, path, *source])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(script, run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.startswith("error: ")
    assert f"{name} {Path(path)} " in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before
