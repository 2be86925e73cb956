import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from cvae_jax import figures
from cvae_jax.types import EpochMetrics


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file)
    file.seek(0)
    return np.asarray(imread(file, format="png"))[..., :3]


@pytest.mark.parametrize("channels", [1, 3])
def test_ten_images_make_two_rows_of_five_in_order(channels: int) -> None:
    # Image i has the grey level i / 10, so that its place in the picture can be read off.
    image = np.full((10, 28, 28, channels), 1.0) * np.arange(10).reshape(10, 1, 1, 1) / 10
    figure = figures.image_grid(image, np.arange(10), "ten", num_columns=5)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [str(i) for i in range(10)]
    canvas = np.asarray(axes.images[0].get_array()).reshape(*axes.images[0].get_size(), -1)
    for i, text in enumerate(axes.texts):
        x, y = text.get_position()
        below = canvas[int(y) + 20, int(x)]
        np.testing.assert_allclose(below, i / 10, err_msg=f"image {i}")
    xs, ys = (np.array([t.get_position()[k] for t in axes.texts]) for k in (0, 1))
    assert len(np.unique(ys)) == 2
    assert (np.diff(xs.reshape(2, 5)) > 0).all()


def test_images_stand_upright_and_are_not_inverted() -> None:
    image = np.zeros((1, 28, 28, 1))
    image[0, :14, :14] = 1  # white top left
    picture = pixels(figures.image_grid(image, np.array([0]), "one", num_columns=1, inches=3))
    is_black = (picture < 0.05).all(axis=-1)
    rows, columns = np.nonzero(is_black)
    height, width = np.ptp(rows), np.ptp(columns)
    top_left = picture[rows.min() + height // 4, columns.min() + width // 4]
    bottom_left = picture[rows.min() + 3 * height // 4, columns.min() + width // 4]
    assert top_left.min() > 0.95
    assert bottom_left.max() < 0.05


@pytest.mark.parametrize(("number", "columns"), [(1, 5), (3, 5), (11, 10), (64, 8)])
def test_any_number_of_images_fits(number: int, columns: int) -> None:
    image = np.zeros((number, 8, 8, 1))
    figure = figures.image_grid(
        image,
        np.zeros(number, int),
        "a title that is longer than one image is wide",
        num_columns=columns,
    )
    picture = pixels(figure)
    # Nothing is cut off: the border of the picture is white.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 1).all()


@pytest.mark.parametrize("num_epochs", [1, 100])
def test_the_loss_curve_shows_both_losses(num_epochs: int) -> None:
    history = [
        EpochMetrics(e, 469 * e, 100 + 1 / e, 80.0, 20.0, 101 + 1 / e, 80.0, 21.0, 1.0)
        for e in range(1, num_epochs + 1)
    ]
    axes = figures.loss_curve(history, "loss").axes[0]
    train, test = axes.get_lines()[:2]
    assert list(train.get_ydata()) == [row.train_loss for row in history]  # type: ignore[arg-type]
    assert list(test.get_ydata()) == [row.test_loss for row in history]  # type: ignore[arg-type]
    assert "nats per image" in axes.get_ylabel()
