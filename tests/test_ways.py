"""The ways to draw of `cvae-jax sample`: their options, files and errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cvae_jax
from cvae_jax.commands import ways
from cvae_jax.commands.sample import SampleOptions, WayOptions, run
from cvae_jax.config import DataOptions
from cvae_jax.errors import ConfigError, DataError, UserError
from cvae_jax.models.sampling import draw_latents
from tests.helpers import write_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workdir of a very small model of nine classes; its data are beside it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data", num_test=20)
    cvae_jax.train(
        "tiny",
        workdir=folder / "run",
        source="idx",
        data_dir=data,
        epochs=3,
        sample_every=1,
        batch_size=4,
        hidden_dim=3,
        latent_dim=2,
        num_devices=1,
    )
    return folder / "run"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = np.full((60, 50), 230, np.uint8)
    picture[10:40, 20:24] = 20
    Image.fromarray(picture).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def draw(trained: Path, out: Path | None = None, **options: Any) -> None:
    """Draw; options of a way are given by their names, as on the command line."""
    names = WayOptions.__dataclass_fields__
    way = {name: options.pop(name) for name in list(options) if name in names}
    data = options.pop("data", DataOptions("idx", trained.parent / "data"))
    run(SampleOptions(workdir=trained, out=out, way=WayOptions(**way), data=data, **options))


WAYS: list[dict[str, Any]] = [
    {"text": "6078"},
    {"text": "6", "num": 1, "temperature": 0.5, "binary": True},
    {"same_style": True},
    {"same_style": True, "gif": True, "binary": True},
    {"interpolate": (6, 8)},
    {"interpolate": (6, 8), "from_test": True},
    {"interpolate": (6, 8), "from_test": True, "gif": True, "num": 2},
    {"traverse": True},
    {"traverse": True, "digit": 0, "gif": True},
    {"reconstruct": True, "digit": 8, "num": 3},
    {"reconstruct": True},
    {"restyle": True, "digit": 3},
    {"map": True, "binary": True},
    {"map": True, "digit": 5},
    {"film": True},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_each_way_writes_its_picture_into_the_workdir(
    options: dict[str, Any], trained: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(options))
    if name == "restyle":
        options = options | {"restyle": photo}
    is_moving = "gif" in options or "film" in options
    draw(trained, **options)
    path = trained / f"{name}.{'gif' if is_moving else 'png'}"
    expected = f"model: {trained}/checkpoints/30\nwrote {path}\n"
    assert capsys.readouterr().out == expected
    with Image.open(path) as picture:
        assert picture.format == ("GIF" if is_moving else "PNG")
        assert np.asarray(picture.convert("L")).std() > 10
    path.unlink()


def test_one_way_and_a_place_are_all_that_a_picture_needs(trained: Path, tmp_path: Path) -> None:
    draw(trained, tmp_path / "new/a.png", text="78")
    draw(trained, tmp_path / "new/b.png", text="78", seed=1)
    draw(trained, tmp_path / "new/c.png", text="78")
    a, b, c = ((tmp_path / f"new/{name}.png").read_bytes() for name in "abc")
    assert a == c != b


def test_a_text_begins_with_the_latents_of_the_seed(trained: Path) -> None:
    model = cvae_jax.load(trained)
    options = SampleOptions(seed=4, num=3, temperature=0.5, way=WayOptions(text="52"))
    picture = ways.draw(options, model)
    latent = draw_latents(3, 4, model=model.model)
    for i in range(3):
        expected = model.decode(np.stack([latent[i], latent[i]]) / 2, [5, 2])
        np.testing.assert_allclose(picture.image[2 * i : 2 * i + 2], expected, atol=1e-6)
    assert picture.title == "tiny: 52 in 3 hands, a row for each"


def test_temperature_and_binary_change_plain_samples(trained: Path, tmp_path: Path) -> None:
    model = cvae_jax.load(trained)
    for name, options in (
        ("usual", {}),
        ("cold", {"temperature": 0.0}),
        ("black", {"binary": True}),
    ):
        draw(trained, digit=6, num=300, npz=tmp_path / f"{name}.npz", **options)
    usual, cold, black = (
        np.load(tmp_path / f"{name}.npz")["image"] for name in ("usual", "cold", "black")
    )
    np.testing.assert_array_equal(usual, model.sample(6, 300))
    np.testing.assert_array_equal(cold, model.sample(6, 300, temperature=0))
    np.testing.assert_allclose(cold, np.broadcast_to(cold[0], cold.shape), atol=1e-6)
    assert set(np.unique(black)) == {0, 1}
    np.testing.assert_allclose(black.mean(axis=0), usual.mean(axis=0), atol=0.12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"text": "6x8"}, "--text 6x8 has 'x', which is no class; write with 0 1 2 3 4 5 6 7 8$"),
        ({"text": "69"}, "--text 69 has '9', which is no class; write with 0 1 2"),
        ({"text": ""}, "--text '' can't be used; choose 1 to 50 characters"),
        ({"text": "6" * 51}, "--text '6{51}' can't be used; choose 1 to 50 characters"),
        ({"text": "6", "num": 51}, "--num 51 can't be used; choose up to 50 with --text"),
        ({"text": "6", "map": True}, "--text and --map can't be drawn at once; choose one"),
        (
            {"same_style": True, "interpolate": (0, 1), "film": True},
            "--same-style and --interpolate and --film can't be drawn at once; choose one",
        ),
        ({"text": "6", "digit": 6}, "--digit has no meaning with --text; leave it out"),
        ({"same_style": True, "npz": Path("a.npz")}, "--npz has no meaning with --same-style;"),
        ({"map": True, "temperature": 0.5}, "--temperature has no meaning with --map;"),
        ({"reconstruct": True, "binary": True}, "--binary has no meaning with --reconstruct;"),
        ({"text": "6", "gif": True}, "--gif has no meaning with --text; leave it out"),
        ({"from_test": True}, "--from-test has no meaning; leave it out"),
        ({"interpolate": (0, 9)}, "--interpolate 9 does not exist in tiny; choose 0 to 8"),
        ({"interpolate": (-1, 3)}, "--interpolate -1 does not exist in tiny; choose 0 to 8"),
        (
            {"interpolate": (6, 8), "from_test": True, "temperature": 2.0},
            "--temperature has no meaning with --from-test; leave it out",
        ),
        (
            {"interpolate": (6, 8), "from_test": True, "binary": True},
            "--binary has no meaning with --from-test; leave it out",
        ),
        (
            {"interpolate": (6, 5), "from_test": True},
            "the test set has no image of class 5; choose one of 6, 8",
        ),
        ({"restyle": Path("a.png")}, "--restyle needs --digit or --class, that of your picture"),
        ({"restyle": Path("a.png"), "digit": 9}, "--digit 9 does not exist in tiny; choose 0 to 8"),
        ({"film": True, "out": Path("a.png")}, "--out a.png can't be used; choose .* ends in .gif"),
        ({"map": True, "out": Path("a.gif")}, "--out a.gif can't be used; choose .* ends in .png"),
        ({"temperature": -0.1}, "--temperature -0.1 can't be used; choose a number from 0 to 100"),
        ({"temperature": float("nan")}, "--temperature nan can't be used; choose a number"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    options: dict[str, Any],
    expected: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.rglob("*"))
    with pytest.raises(ConfigError, match=f"^{expected}"):
        draw(trained, **options)
    assert sorted(trained.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_picture_of_another_kind_of_data_is_refused(trained: Path, tmp_path: Path) -> None:
    other = DataOptions("idx", write_data(tmp_path / "other", num_test=9))
    with pytest.raises(DataError, match=r"^the model was trained on other data than this tiny;"):
        draw(trained, reconstruct=True, data=other)


def test_a_picture_that_is_none_is_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"a\.png is no picture; give a PNG or a JPEG"):
        draw(trained, restyle=tmp_path / "a.png", digit=3)


def test_a_film_needs_the_grids_of_two_epochs(trained: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("config.json", "checkpoints"):
        (run_folder / name).symlink_to(trained / name)
    (run_folder / "samples").mkdir()
    image = Image.new("RGB", (640, 480), "white")
    for number, expected in enumerate(
        ["has 0; train with --sample-every 1", "has 1; train with", "one has 640 x 480 pixels"]
    ):
        with pytest.raises(UserError, match=expected):
            draw(run_folder, film=True, data=DataOptions())
        image.save(run_folder / f"samples/epoch_00{number + 1}.png")
    (run_folder / "samples/epoch_001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_001\.png is no picture"):
        draw(run_folder, film=True, data=DataOptions())
