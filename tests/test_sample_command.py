from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import cvae_jax
from cvae_jax.commands.sample import SampleOptions, run
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workdir in which a very small model of three classes was trained for one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    train, test = (
        Dataset(random.integers(0, 256, (n, 5, 4, 1), np.uint8), np.arange(n, dtype=np.int32) % 3)
        for n in (12, 6)
    )
    settings: dict[str, Any] = {"dataset": "tiny", "batch_size": 4, "num_devices": 1}
    cvae_jax.train(
        Splits(train, test, 3), epochs=1, workdir=folder, hidden_dim=3, latent_dim=2, **settings
    )
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with a link to the workdir at the default place."""
    home = tmp_path / "a höme with spaces"
    (home / "runs").mkdir(parents=True)
    (home / "runs/mnist").symlink_to(trained)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    return home


def draw(**options: Any) -> None:
    run(SampleOptions(**options))


@pytest.mark.parametrize(
    ("options", "name"), [({}, "digits.png"), ({"digit": 2, "num": 3}, "digit_2.png")]
)
def test_a_picture_is_written_into_the_workdir(
    options: dict[str, Any], name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(**options)
    picture = np.asarray(imread(home / "runs/mnist" / name))
    assert picture.std() > 0.1
    output = capsys.readouterr().out
    assert output == f"model: runs/mnist/checkpoints/3\nwrote runs/mnist/{name}\n"
    (home / "runs/mnist" / name).unlink()


@pytest.mark.parametrize(("digit", "expected"), [(None, [0, 1, 2, 0, 1]), (1, [1] * 5)])
def test_arrays_are_the_samples_of_the_api(
    digit: int | None, expected: list[int], home: Path, trained: Path
) -> None:
    draw(digit=digit, num=5, seed=3, npz=Path("~/new/b c/ü.npz"))
    with np.load(home / "new/b c/ü.npz") as arrays:
        assert arrays["label"].dtype == np.int32
        assert list(arrays["label"]) == expected
        assert arrays["image"].dtype == np.float32
        images = cvae_jax.load(trained).sample(expected, seed=3)
        np.testing.assert_array_equal(arrays["image"], images)
    assert not list((home / "runs/mnist").glob("*digit*"))


def test_both_kinds_of_files_are_written_where_both_are_named(home: Path) -> None:
    (home / "there").write_bytes(b"old")
    (home / "a.png").symlink_to("there")
    draw(num=2500, npz=Path("a.npz"))  # two batches and a half
    draw(num=2, npz=Path("b.npz"), out=Path("a.png"))
    assert (home / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (home / "there").read_bytes() == b"old"
    with np.load("a.npz") as many, np.load("b.npz") as few:
        np.testing.assert_array_equal(many["label"], np.arange(2500) % 3)
        np.testing.assert_allclose(many["image"][:2], few["image"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"digit": -1}, "--digit -1 does not exist in tiny; choose 0 to 2"),
        ({"digit": 10**30}, f"--digit {10**30} does not exist in tiny; choose 0 to 2"),
        ({"step": 0}, r"--step 0 is not in runs/mnist/checkpoints; choose one of \[3\]"),
        ({"num": 1001}, "--num 1001 is too many for a picture; choose up to 1000, or --npz"),
        ({"num": 1001, "npz": Path("a.npz"), "show": True}, "--num 1001 is too many"),
        ({"num": 2**31 - 1, "npz": Path("a.npz")}, "--num 2147483647 can't be used; choose"),
        ({"seed": -1}, "--seed -1 can't be used"),
        ({"out": Path("a.jpg")}, "--out a.jpg can't be used; choose a name that ends in .png"),
        ({"npz": Path("a")}, "--npz a can't be used; choose a name that ends in .npz"),
        ({"workdir": Path("nowhere")}, "no trained model in nowhere; use --pretrained best, "),
        ({"workdir": Path("~nobody-here/run")}, "--workdir ~nobody-here/run can't be used"),
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_and_nothing_is_written(
    options: dict[str, Any], expected: str, home: Path
) -> None:
    before = sorted(home.rglob("*"))
    with pytest.raises(ConfigError, match=f"^{expected}"):
        draw(**options)
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("option", ["out", "npz"])
def test_a_file_that_cannot_be_written_is_one_line(option: str, home: Path) -> None:
    (home / "file").write_bytes(b"old")
    path = Path("file/new.png" if option == "out" else "file/new.npz")
    with pytest.raises(UserError, match=f"^{path} can't be written: (Not a dir|File exists)"):
        draw(num=2, **{option: path})
    assert (home / "file").read_bytes() == b"old"


def test_without_a_display_the_picture_is_in_its_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    with pytest.raises(UserError, match=r"no display to show the picture on; it is in a\.png"):
        draw(num=2, out=Path("a.png"), show=True)
    assert (home / "a.png").exists()
