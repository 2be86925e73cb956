"""What each way to draw draws, read back from its images."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cvae_jax.data.batches import put_on_device
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.drawing import figures, modes
from cvae_jax.drawing.paths import arc, circle, principal_components
from cvae_jax.drawing.pictures import Table
from cvae_jax.errors import ConfigError
from cvae_jax.evaluation.judge import BUNDLED, judge_all, read
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images, draw_latents
from cvae_jax.storage.history import EpochMetrics
from tests.helpers import behind_glass, drawing_from, glass_model

RANDOM = np.random.default_rng(0)
LATENT = RANDOM.normal(size=(2, 3)).astype(np.float32)
GLASS = glass_model()
# Images of a glass model: their latents lie between -2 and 2.
ENCODED = Dataset(
    RANDOM.integers(30, 226, (400, 1, 4, 1), np.uint8), np.arange(400, dtype=np.int32) % 3
)


def test_a_text_is_read_back_by_the_judge(mnist: Splits) -> None:
    model, params = drawing_from(mnist.train)
    label = np.array([2, 0, 2, 6, 1, 3, 4, 5, 7, 8, 9], np.int32)
    picture = modes.text(params, label, draw_latents(30, 0, model=model), model=model)
    judge = read(BUNDLED, mnist, mnist.fingerprint())
    image = np.rint(255 * picture.image).astype(np.uint8)
    drawn = put_on_device(Dataset(image, np.zeros(len(image), np.int32)))
    verdict = judge_all(judge, drawn, image_shape=(28, 28, 1), num_classes=10)
    seen = np.argmax(verdict.logits, axis=-1).reshape(30, len(label))
    assert (seen == label).mean() > 0.98
    assert picture.title == "20261345789 in 30 hands, a row for each"


def test_a_row_of_a_text_has_one_latent() -> None:
    picture = modes.text({}, np.array([3, 0, 3]), LATENT, model=GLASS)
    latent, label = behind_glass(picture.image.reshape(2, 3, 1, 4, 1))
    np.testing.assert_allclose(latent, LATENT[:, np.newaxis].repeat(3, axis=1), atol=1e-5)
    np.testing.assert_allclose(label, [[3, 0, 3]] * 2, atol=1e-4)
    assert picture.num_columns == 3


def test_a_row_of_one_style_has_one_latent_and_a_column_one_class() -> None:
    picture = modes.same_style({}, LATENT, model=GLASS)
    latent, label = behind_glass(picture.image.reshape(2, 4, 1, 4, 1))
    np.testing.assert_allclose(latent, LATENT[:, np.newaxis].repeat(4, axis=1), atol=1e-5)
    np.testing.assert_allclose(label, [[0, 1, 2, 3]] * 2, atol=1e-4)
    assert (picture.num_columns, picture.columns) == (4, ["0", "1", "2", "3"])
    moving = modes.same_style({}, np.stack([LATENT, -LATENT]), model=GLASS)
    assert moving.image.shape == (2, 8, 1, 4, 1)
    np.testing.assert_array_equal(moving.image[0], picture.image)


def test_latents_are_those_of_the_samples(model: Model, params: Params) -> None:
    label = np.array([3, 7, 7], np.int32)
    rows = modes.text(params, label[:1], draw_latents(3, 5, model=model), model=model).image
    samples = draw_images(params, np.full(3, 3, np.int32), 5, model=model)
    np.testing.assert_allclose(rows, samples, atol=1e-6)
    cold = draw_images(params, label, 5, model=model, temperature=0.0)
    np.testing.assert_array_equal(cold[1], cold[2])
    warm = draw_images(params, label, 5, model=model, temperature=2.0)
    rows = modes.text(params, label[:1], 2 * draw_latents(1, 5, model=model), model=model).image
    np.testing.assert_allclose(warm[:1], rows, atol=1e-6)


def test_the_ends_of_an_interpolation_are_the_images_it_joins() -> None:
    ends = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    picture = modes.interpolate({}, ends, (0, 3), model=GLASS)
    latent, label = behind_glass(picture.image.reshape(5, -1, 1, 4, 1))
    np.testing.assert_allclose(latent[:, 0], ends[0], atol=1e-5)
    np.testing.assert_allclose(latent[:, -1], ends[1], atol=1e-5)
    # The label changes in the middle third, from one class to the other.
    assert (np.diff(label[0]) > -1e-4).all()
    place = np.linspace(0, 1, label.shape[1])
    np.testing.assert_allclose(label[:, place < 1 / 3], 0, atol=1e-4)
    np.testing.assert_allclose(label[:, place > 2 / 3], 3, atol=1e-4)
    np.testing.assert_allclose(label[:, place == 0.5], 1.5, atol=1e-4)


def test_an_interpolation_of_samples_ends_in_the_samples(model: Model, params: Params) -> None:
    ends = draw_latents(6, 1, model=model).reshape(2, 3, -1)
    image = modes.interpolate(params, ends, (4, 9), model=model).image.reshape(3, -1, 28, 28, 1)
    samples = draw_images(params, np.repeat([4, 9], 3).astype(np.int32), 1, model=model)
    np.testing.assert_allclose(image[:, 0], samples[:3], atol=1e-6)
    np.testing.assert_allclose(image[:, -1], samples[3:], atol=1e-6)


def test_an_interpolation_of_test_images_shows_them_beside_their_reconstructions(
    model: Model, params: Params, mnist: Splits
) -> None:
    chosen = modes.choose(mnist.test, [3] * 4 + [8] * 4, 0)
    np.testing.assert_array_equal(chosen.label, [3] * 4 + [8] * 4)
    latent, _ = modes.encode(params, chosen, model=model)
    given = np.asarray(chosen.image, np.float32) / 255
    picture = modes.interpolate(
        params,
        latent.reshape(2, 4, -1),
        (3, 8),
        model=model,
        given=given.reshape(2, 4, 28, 28, 1),
    )
    image = picture.image.reshape(4, picture.num_columns, 28, 28, 1)
    noise = jnp.zeros((8, model.latent_dim))
    found = model.autoencode(params, jnp.asarray(given), jnp.asarray(chosen.label), noise)
    again = jax.nn.sigmoid(found.logits)
    np.testing.assert_array_equal(image[:, 0], given[:4])
    np.testing.assert_array_equal(image[:, -1], given[4:])
    np.testing.assert_allclose(image[:, 1], again[:4], atol=1e-5)
    np.testing.assert_allclose(image[:, -2], again[4:], atol=1e-5)
    assert [picture.columns[i] for i in (0, 1, -2, -1)] == ["test", "3", "8", "test"]


def test_a_moving_interpolation_goes_there_and_back() -> None:
    picture = modes.interpolate({}, LATENT[:, np.newaxis], (1, 2), model=GLASS, is_moving=True)
    latent, label = behind_glass(picture.image[:, 0])
    np.testing.assert_allclose(latent[0], LATENT[0], atol=1e-5)
    np.testing.assert_allclose(latent[modes.NUM_FRAMES // 2], LATENT[1], atol=1e-5)
    np.testing.assert_allclose(latent[1:], latent[:0:-1], atol=1e-5)
    np.testing.assert_allclose(label[[0, modes.NUM_FRAMES // 2]], [1, 2], atol=1e-4)


def test_an_arc_keeps_the_length_of_its_ends_and_its_speed() -> None:
    start, end = RANDOM.normal(size=(2, 6, 50))
    end *= np.linalg.norm(start, axis=1, keepdims=True) / np.linalg.norm(end, axis=1, keepdims=True)
    way = arc(start, end, np.linspace(0, 1, 9))
    lengths = np.linalg.norm(way, axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), rtol=1e-5)
    steps = np.linalg.norm(np.diff(way, axis=0), axis=-1)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), rtol=1e-4)


@pytest.mark.parametrize("ends", [(1, -1), (2, 2), (0, 3), (0, 0)])
def test_an_arc_between_ends_in_one_line_with_0_is_straight(ends: tuple[int, int]) -> None:
    one, position = np.array([[0.6, 0.8]]), np.array([0, 0.25, 1])
    expected = (ends[0] + position * (ends[1] - ends[0])).reshape(-1, 1, 1) * one
    np.testing.assert_allclose(arc(ends[0] * one, ends[1] * one, position), expected, atol=1e-6)


def test_a_circle_of_samples_consists_of_samples() -> None:
    start, through = RANDOM.normal(size=(2, 20_000, 2))
    latents = circle(start, through, 8)
    np.testing.assert_allclose(latents[0], start, atol=1e-6)
    np.testing.assert_allclose(latents[2], through, atol=1e-6)
    np.testing.assert_allclose(latents.std(axis=1), 1, atol=0.02)


def test_principal_components_are_those_of_a_known_covariance() -> None:
    rotation = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
    latent = RANDOM.normal(size=(50_000, 3)) * [1, 3, 2] @ rotation + 5
    direction, share = principal_components(latent)
    np.testing.assert_allclose(np.abs(direction @ rotation.T), np.eye(3)[[1, 2, 0]], atol=0.02)
    np.testing.assert_allclose(share, np.array([9, 4, 1]) / 14, atol=0.01)


def test_a_traverse_follows_the_dimensions_of_the_largest_kl() -> None:
    picture = modes.traverse({}, ENCODED, np.array([2]), 2, model=GLASS)
    latent, label = behind_glass(picture.image.reshape(2, picture.num_columns, 1, 4, 1))
    reach = np.linspace(-3, 3, picture.num_columns)
    expected = np.zeros((2, len(reach), 3))
    expected[0, :, 2] = expected[1, :, 1] = reach  # a glass model's KL rises with the dimension
    np.testing.assert_allclose(latent, expected, atol=1e-5)
    np.testing.assert_allclose(label, 2, atol=1e-4)
    assert picture.rows == ["z2  2.00 nats", "z1  1.00 nats"]
    assert [one for one in picture.columns if one] == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]


def test_a_traverse_of_a_model_with_one_kl_follows_the_principal_components() -> None:
    image = np.array(ENCODED.image)
    image[:, 0, 1] = 128 + (image[:, 0, 1].astype(int) - 128) // 4
    stretched = ENCODED._replace(image=image)
    model = glass_model(num_groups=1)
    picture = modes.traverse({}, stretched, np.array([1]), 3, model=model)
    latent, _ = behind_glass(picture.image.reshape(3, picture.num_columns, 1, 4, 1))
    encoded, _ = modes.encode({}, stretched, model=model)
    direction, _ = principal_components(encoded)
    np.testing.assert_allclose(latent[:, -1], 3 * direction, atol=1e-5)
    np.testing.assert_allclose(latent[:, 0], -3 * direction, atol=1e-5)
    assert abs(direction[2, 1]) > 0.99  # the dimension that varies least
    assert float(picture.rows[2].rstrip("%")) < 5


def test_a_moving_traverse_has_a_column_for_each_class() -> None:
    picture = modes.traverse({}, ENCODED, np.arange(4), 2, model=GLASS, is_moving=True)
    latent, label = behind_glass(picture.image.reshape(-1, 2, 4, 1, 4, 1))
    assert len(latent) == modes.NUM_FRAMES
    assert latent[:, 0, :, 2].max() == pytest.approx(3, abs=1e-4)
    assert latent[:, 0, :, 2].min() == pytest.approx(-3, abs=1e-4)
    np.testing.assert_allclose(latent[:, 0, :, :2], 0, atol=1e-5)
    np.testing.assert_allclose(label, np.broadcast_to(np.arange(4), label.shape), atol=1e-4)
    assert picture.note[modes.NUM_FRAMES // 4] == "+3.0 standard deviations"


@pytest.mark.parametrize(("number", "num_columns"), [(3, 3), (20, 10), (23, 10)])
def test_each_reconstruction_stands_under_its_image(number: int, num_columns: int) -> None:
    some = Dataset(ENCODED.image[:number], ENCODED.label[:number])
    picture = modes.reconstruct({}, some, model=GLASS)
    assert picture.num_columns == num_columns
    rows = picture.image.reshape(-1, 2, num_columns, 1, 4, 1)
    shown, again = (rows[:, i].reshape(-1, 1, 4, 1) for i in (0, 1))
    original = np.asarray(some.image, np.float32) / 255
    np.testing.assert_array_equal(shown[:number], original)
    # A glass model draws the class where it can't read anything.
    np.testing.assert_allclose(again[:number, :, :3], original[:, :, :3], atol=1e-5)
    np.testing.assert_allclose(behind_glass(again[:number])[1], some.label, atol=1e-4)
    assert (rows.reshape(2, -1, 1, 4, 1)[:, number:] == 1).all() or number % num_columns
    assert list(picture.rows) == ["image", "again"] * len(rows)


def test_a_restyled_image_is_every_class_with_its_latent() -> None:
    image = (np.array([0.2, 0.5, 0.9, 0.3], np.float32)).reshape(1, 4, 1)
    photo = np.full((50, 200), 0.25, np.float32)
    picture = modes.restyle({}, image, 2, photo, model=GLASS)
    shown = picture.image.reshape(2, 3, *picture.image.shape[1:])
    small = shown[:, :, ::5, ::5]
    latent, label = behind_glass(small[:, 1:])
    np.testing.assert_allclose(label, [[0, 1], [2, 3]], atol=1e-4)
    expected = behind_glass(image)[0]
    np.testing.assert_allclose(latent, np.broadcast_to(expected, latent.shape), atol=1e-5)
    np.testing.assert_array_equal(small[1, 0], image)
    np.testing.assert_allclose(shown[0, 0], 0.25, atol=1e-6)  # the photo, in the same shape


@pytest.mark.parametrize("label", [None, 3])
def test_the_images_of_a_map_lie_where_they_say(label: int | None) -> None:
    picture = modes.latent_map({}, ENCODED, label, model=GLASS)
    latent, shown = behind_glass(picture.image)
    encoded, _ = modes.encode({}, ENCODED, model=GLASS)
    direction, _ = principal_components(encoded)
    along = (latent - encoded.mean(axis=0)) @ direction.T
    np.testing.assert_allclose(along[:, :2], picture.place, atol=1e-5)
    np.testing.assert_allclose(along[:, 2], 0, atol=1e-5)
    dots = (encoded - encoded.mean(axis=0)) @ direction[:2].T
    np.testing.assert_allclose(picture.dots, dots, atol=1e-5)
    np.testing.assert_allclose(shown, picture.label, atol=1e-4)
    for place, one in zip(picture.place, picture.label, strict=True):
        nearest = np.linalg.norm(dots - place, axis=1).argmin()
        assert one == (ENCODED.label[nearest] if label is None else label)
    assert len(set(picture.label)) == (3 if label is None else 1)


def test_the_figure_of_a_map_puts_each_image_at_its_place_in_the_colour_of_its_class() -> None:
    picture = modes.latent_map({}, ENCODED, model=GLASS)
    axes = picture.figure().axes[0]
    middles = [np.mean(np.reshape(one.get_extent(), (2, 2)), axis=1) for one in axes.images]
    np.testing.assert_allclose(middles, picture.place, atol=1e-9)
    dots = axes.collections[0]
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), picture.dots)
    colours = dict(zip(ENCODED.label.tolist(), np.asarray(dots.get_facecolor()), strict=True))
    for one, label in zip(axes.images, picture.label, strict=True):
        ink = np.asarray(one.get_array())[0, 0, :3]
        np.testing.assert_allclose(ink, 0.8 * colours[int(label)][:3], atol=1e-6)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_a_latent_of_few_dimensions_has_a_map(latent_dim: int) -> None:
    data = Dataset(np.asarray(ENCODED.image)[:, :, : latent_dim + 1], ENCODED.label)
    picture = modes.latent_map({}, data, model=glass_model(latent_dim))
    assert np.isfinite(picture.image).all()


# A film is read back from the grids that a run has drawn.


def rows(number: int) -> list[EpochMetrics]:
    return [
        EpochMetrics(e, e, 100.0, 80.0, 20.0, 100 + 1 / e, 80.0, 21.0, 1.0)
        for e in range(1, 1 + number)
    ]


@pytest.mark.parametrize(("shape", "number"), [((28, 28, 1), 64), ((5, 4, 1), 64), ((9, 12, 3), 7)])
def test_a_grid_is_read_back_from_its_picture(shape: tuple[int, int, int], number: int) -> None:
    image = RANDOM.integers(0, 256, (number, *shape)) / 255
    columns, inches = figures.GRID_COLUMNS, figures.GRID_INCHES
    title = "samples after an epoch, of a data set with a long name"
    grid = figures.image_grid(image, range(number), title, num_columns=columns, inches=inches)
    if number < columns:
        with pytest.raises(ValueError, match="one has"):
            figures.read_grid(figures.pixels(grid), shape)
        return
    found = figures.read_grid(figures.pixels(grid), shape)
    assert found.shape == image.shape
    np.testing.assert_allclose(found, image, atol=1.01 / 255)


def test_a_film_shows_all_epochs_in_order_and_stays_at_the_last() -> None:
    image = np.arange(1, 6).reshape(5, 1, 1, 1, 1) / 10 * np.ones((5, 64, 28, 28, 1))
    picture = modes.film(image, [1, 2, 4, 8, 9], rows(9), names="0123456789")
    levels = (10 * picture.image[:, 0, 0, 0, 0]).round().astype(int).tolist()
    assert levels == [1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert picture.note[:3] == [
        f"epoch {e}: test loss {100 + 1 / e:.2f} nats per image" for e in (1, 2, 4)
    ]
    assert picture.columns == [str(i) for i in range(10)]
    assert picture.image.shape[1] == 60  # whole rows of ten classes


def test_the_film_of_a_long_run_is_short_and_small(mnist: Splits) -> None:
    epochs = modes.choose_epochs(range(1, 201))
    assert len(epochs) <= 40
    assert (epochs[:4], epochs[-1]) == ([1, 2, 3, 4], 200)
    assert modes.choose_epochs([10, 20, 35]) == [10, 20, 35]
    shape = (40, 64, 28, 28, 1)
    image = np.asarray(mnist.train.image[: 64 * 40], np.float32).reshape(shape) / 255
    file = io.BytesIO()
    modes.film(image, range(1, 41), rows(40), names="0123456789").write(file)
    assert file.tell() < 3e6  # though no frame looks like the one before


# Pixels, and choices.


def test_binary_pixels_are_white_as_often_as_their_means_say() -> None:
    means = np.linspace(0, 1, 11, dtype=np.float32).repeat(10_000).reshape(11, 100, 100, 1)
    picture = modes.binarize(Table(means, "", num_columns=11), 3)
    assert set(np.unique(picture.image)) == {0, 1}
    np.testing.assert_allclose(picture.image.mean(axis=(1, 2, 3)), np.linspace(0, 1, 11), atol=0.02)
    again, other = (modes.binarize(Table(means, "", num_columns=11), i).image for i in (3, 4))
    np.testing.assert_array_equal(picture.image, again)
    assert (picture.image != other).any()
    still = modes.binarize(Table(np.stack([means, means]), "", num_columns=11), 3).image
    np.testing.assert_array_equal(*still)


def test_images_are_chosen_by_class_and_seed_without_repeats_where_possible() -> None:
    chosen = modes.choose(ENCODED, [2, 0] * 100, 1)
    np.testing.assert_array_equal(chosen.label, [2, 0] * 100)
    assert len(np.unique(chosen.image[::2], axis=0)) == 100
    np.testing.assert_array_equal(modes.choose(ENCODED, [2, 0] * 100, 1).image, chosen.image)
    assert (modes.choose(ENCODED, [2, 0] * 100, 2).image != chosen.image).any()
    assert len(modes.choose(ENCODED, [1] * 150, 1).label) == 150  # of 133
    with pytest.raises(ConfigError, match="no image of class 3; choose one of 0, 1, 2"):
        modes.choose(ENCODED, [1, 3], 0)


# Figures and moving pictures.


def test_a_moving_picture_is_a_gif_that_repeats_and_holds_its_frames() -> None:
    levels = np.array([0.0, 0.5, 1.0], np.float32)
    image = levels.reshape(3, 1, 1, 1, 1) * np.ones((3, 4, 28, 28, 1), np.float32)
    picture = Table(image, "three", num_columns=2, note=["a", "b", "c"], seconds=0.2)
    file = io.BytesIO()
    picture.write(file)
    with Image.open(file) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)  # type: ignore[attr-defined]
        assert gif.width <= 800
        found = []
        for i in range(3):
            gif.seek(i)
            assert gif.info["duration"] == 200
            found.append(np.asarray(gif.convert("L"))[gif.height * 3 // 4, gif.width // 3])
    np.testing.assert_allclose(np.array(found) / 255, levels, atol=0.05)  # of sixteen levels
