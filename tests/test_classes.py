"""Names of classes: chosen by them, shown in pictures, and kept with a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cvae_jax
from cvae_jax.commands import data, sample
from cvae_jax.commands.sample import SampleOptions, WayOptions, class_of
from cvae_jax.commands.ways import classes_of
from cvae_jax.config import DataOptions, RunConfig, TrainConfig
from cvae_jax.data.dataset import Dataset, Splits, check_splits
from cvae_jax.data.sources import KNOWN, load_dataset
from cvae_jax.drawing.figures import class_captions
from cvae_jax.errors import ConfigError, DataError
from tests.helpers import write_data

FASHION = KNOWN["fashion_mnist"].class_names
LETTERS = ("A", "B", "d", "L", "l")


def run_of(*names: str, num_classes: int = 9) -> RunConfig:
    config = TrainConfig(dataset="tiny")
    return RunConfig(config, (5, 4, 1), len(names) or num_classes, "0", names)


@pytest.mark.parametrize(
    ("names", "named", "label"),
    [
        (FASHION, "Ankle boot", 9),
        (FASHION, "ankle BOOT", 9),
        (FASHION, "9", 9),
        (LETTERS, "l", 4),
        (LETTERS, "L", 3),
        (LETTERS, "a", 0),
        (("5", "1", "0"), "0", 2),  # a name comes before a number
        ((), "8", 8),
    ],
)
def test_a_class_is_chosen_by_name_or_number(
    names: tuple[str, ...], named: str, label: int
) -> None:
    assert class_of("class", named, run_of(*names)) == label


@pytest.mark.parametrize("named", ["Boot", "10", "-1", "²", ""])
def test_a_class_that_does_not_exist_is_named_with_those_that_do(named: str) -> None:
    message = f"^--class {named} does not exist in tiny; choose 0 to 9, or one of T-shirt/top, Tro"
    with pytest.raises(ConfigError, match=message):
        class_of("class", named, run_of(*FASHION))


def test_a_text_is_written_with_letters_of_either_case() -> None:
    config = run_of(*LETTERS).model
    assert classes_of("aLlBD", config).tolist() == [0, 3, 4, 1, 2]
    with pytest.raises(ConfigError, match=r"has 'x', which is no class; write with A B d L l$"):
        classes_of("Ax", config)
    with pytest.raises(ConfigError, match=r"has 'B', .* no letters; use --class$"):
        classes_of("Bag", run_of(*FASHION).model)


def test_a_name_that_the_font_cannot_write_is_shown_as_its_number() -> None:
    assert class_captions([0, 1, 0], ["猫", "Ü"]) == ["0", "Ü", "0"]


@pytest.mark.parametrize("names", [("a",), ("a", "a", "b"), ("a", "b", "c", "d")])
def test_names_that_are_not_those_of_the_classes_are_refused(names: tuple[str, ...]) -> None:
    some = Dataset(np.zeros((3, 2, 2, 1), np.uint8), np.arange(3, dtype=np.int32))
    with pytest.raises(DataError, match=r"^it has \d names for 3 classes$"):
        check_splits(Splits(some, some, 3, names), "it")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Splits, Path]:
    """Return a data set of nine named classes, and a run on it."""
    folder = tmp_path_factory.mktemp("named")
    splits = load_dataset("tiny", source="idx", data_dir=write_data(folder / "data"))
    splits = splits._replace(class_names=(*"ABCDEFGH", "Ankle boot"))
    settings: dict[str, Any] = {"hidden_dim": 3, "latent_dim": 2, "num_devices": 1}
    cvae_jax.train(splits, epochs=1, workdir=folder / "run", **settings)
    return splits, folder / "run"


def test_a_run_keeps_its_names_and_one_from_before_resumes(
    named: tuple[Splits, Path], tmp_path: Path
) -> None:
    splits, folder = named[0], Path(shutil.copytree(named[1], tmp_path / "run"))
    assert cvae_jax.load(folder).run.class_names == splits.class_names
    record = json.loads((folder / "config.json").read_text())
    del record["class_names"]
    (folder / "config.json").write_text(json.dumps(record))
    settings: dict[str, Any] = {"hidden_dim": 3, "latent_dim": 2, "num_devices": 1}
    assert len(cvae_jax.train(splits, epochs=2, workdir=folder, **settings).history) == 2


def test_samples_are_called_by_their_names(named: tuple[Splits, Path]) -> None:
    folder = named[1]
    sample.run(SampleOptions(workdir=folder, class_name="ankle boot"))
    assert (folder / "class_Ankle_boot.png").exists()
    sample.run(SampleOptions(workdir=folder, way=WayOptions(text="AbHa")))
    sample.run(SampleOptions(workdir=folder, way=WayOptions(interpolate=("B", "ankle boot"))))
    with pytest.raises(ConfigError, match=r"^--digit and --class are the same"):
        SampleOptions(digit=1, class_name="B")


def test_the_list_of_data_sets_says_which_are_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emnist" / "letters" / "cvae_jax").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    data.run(data.DataCommand(data=DataOptions(data_dir=Path("~"))))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "in this package" in lines["mnist"]
    assert f"{tmp_path}/emnist/letters" in lines["emnist/letters"]
    assert "26   124,800    20,800" in lines["emnist/letters"]
    assert "to be downloaded" in lines["emnist/digits"]


def test_a_sheet_has_a_row_for_each_class(tmp_path: Path, mnist: Splits) -> None:
    from cvae_jax.drawing import modes

    picture = modes.sheet(mnist, "mnist", seed=0)
    assert picture.rows == [str(i) for i in range(10)]
    of = {
        image.tobytes(): label for image, label in zip(*map(np.asarray, mnist.train), strict=True)
    }
    shown = [of[np.rint(255 * one).astype(np.uint8).tobytes()] for one in picture.image]
    assert shown == np.repeat(range(10), picture.num_columns).tolist()
    out = tmp_path / "sheet.png"
    data.run(data.DataCommand(sheet="mnist", out=out))
    assert out.stat().st_size > 10_000
