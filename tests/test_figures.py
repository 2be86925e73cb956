import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from cvae_jax.drawing import figures
from cvae_jax.drawing.modes import samples
from cvae_jax.evaluation import page
from cvae_jax.evaluation.measurement import share
from cvae_jax.evaluation.page import Page, choose_images, draw_page
from cvae_jax.models.family import Model, Params
from cvae_jax.models.sampling import draw_images
from cvae_jax.storage.history import EpochMetrics


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file)
    file.seek(0)
    return np.asarray(imread(file, format="png"))[..., :3]


def assert_nothing_is_cut_off(figure: Figure) -> None:
    picture = pixels(figure)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert edge.min() == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_ten_images_make_two_rows_of_five_in_order(channels: int) -> None:
    # Image i has the grey level i / 10, so that its place in the picture can be read off.
    image = np.full((10, 28, 28, channels), 1.0) * np.arange(10).reshape(10, 1, 1, 1) / 10
    axes = figures.image_grid(image, np.arange(10), "ten", num_columns=5).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(i) for i in range(10)]
    canvas = np.asarray(axes.images[0].get_array()).reshape(*axes.images[0].get_size(), -1)
    for i, text in enumerate(axes.texts):
        x, y = text.get_position()
        np.testing.assert_allclose(canvas[int(y) + 20, int(x)], i / 10, err_msg=f"image {i}")
    xs, ys = (np.array([t.get_position()[k] for t in axes.texts]) for k in (0, 1))
    assert len(np.unique(ys)) == 2
    assert (np.diff(xs.reshape(2, 5)) > 0).all()


def test_images_stand_upright_and_are_not_inverted() -> None:
    image = np.zeros((1, 28, 28, 1))
    image[0, :14, :14] = 1  # white top left
    picture = pixels(figures.image_grid(image, np.array([0]), "one", num_columns=1, inches=3))
    rows, columns = np.nonzero((picture < 0.05).all(axis=-1))
    height, width = np.ptp(rows), np.ptp(columns)
    top_left = picture[rows.min() + height // 4, columns.min() + width // 4]
    bottom_left = picture[rows.min() + 3 * height // 4, columns.min() + width // 4]
    assert top_left.min() > 0.95
    assert bottom_left.max() < 0.05


@pytest.mark.parametrize(("number", "columns"), [(1, 5), (11, 10), (64, 8)])
def test_any_number_of_images_fits(number: int, columns: int) -> None:
    title = "a title that is longer than one image is wide"
    image, caption = np.zeros((number, 8, 8, 1)), ["a"] * number
    assert_nothing_is_cut_off(figures.image_grid(image, caption, title, num_columns=columns))


@pytest.mark.parametrize("num_epochs", [0, 1, 100])
def test_the_loss_curve_shows_both_losses(num_epochs: int) -> None:
    history = [
        EpochMetrics(e, 469 * e, 100 + 1 / e, 80.0, 20.0, 101 + 1 / e, 80.0, 21.0, 1.0)
        for e in range(1, num_epochs + 1)
    ]
    axes = figures.loss_curve(history, "loss").axes[0]
    train, test = axes.get_lines()[:2]
    np.testing.assert_array_equal(train.get_ydata(), [row.train_loss for row in history])
    np.testing.assert_array_equal(test.get_ydata(), [row.test_loss for row in history])
    assert "nats per image" in axes.get_ylabel()


def test_an_epoch_with_an_outlier_does_not_flatten_the_loss_curve() -> None:
    losses = [140.0, 90.0, 6000.0, 80.0]
    history = [EpochMetrics(i, i, loss, 0, 0, 85.0, 0, 0, 1) for i, loss in enumerate(losses, 1)]
    axes = figures.loss_curve(history, "loss").axes[0]
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), [140, 90, np.nan, 80])
    assert axes.get_ylim()[1] < 200
    assert axes.get_legend_handles_labels()[1][0].endswith("(without 1 above 170)")


@pytest.mark.parametrize(("number", "columns"), [(10, 5), (11, 10)])
def test_a_picture_of_samples_is_captioned_by_their_labels(
    number: int, columns: int, model: Model, params: Params
) -> None:
    label = np.arange(number, dtype=np.int32) % 10
    picture = samples(params, label, 3, model=model, title="some")
    np.testing.assert_array_equal(picture.image, draw_images(params, label, 3, model=model))
    assert picture.num_columns == columns
    texts = [text.get_text() for text in picture.figure().axes[0].texts]
    assert texts == [str(one) for one in label]


# Tables of images.


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_words_of_a_table_stand_at_its_columns_and_rows(channels: int, is_joined: bool) -> None:
    # Image i has the grey level i / 12, so that its place in the picture can be read off.
    image = np.full((12, 28, 28, channels), 1.0) * np.arange(12).reshape(-1, 1, 1, 1) / 12
    figure = figures.image_table(
        image,
        "twelve",
        num_columns=4,
        columns=list("abcd"),
        rows=["first", "second", "third"],
        note="a note",
        is_joined=is_joined,
    )
    picture, axes = pixels(figure), figure.axes[0]
    across = {text.get_text(): text.xy for text in axes.texts}  # type: ignore[attr-defined]
    for i in range(12):
        x, y = across["abcd"[i % 4]][0], across[["first", "second", "third"][i // 4]][1]
        column, row = axes.transAxes.transform((x, y))
        np.testing.assert_allclose(
            picture[len(picture) - int(row), int(column)], i / 12, atol=0.01, err_msg=f"image {i}"
        )
    assert [text.get_text() for text in figure.texts] == ["twelve", "a note"]


@pytest.mark.parametrize(
    ("shape", "number", "columns", "title"),
    [
        ((28, 28, 1), 1, 1, "a title that is longer than one image is wide"),
        ((28, 28, 1), 60, 10, ""),
        ((5, 4, 1), 9, 3, "small"),
        ((300, 300, 3), 20, 10, "large"),
        ((1, 300, 1), 20, 10, "wide"),
        ((28, 28, 1), 50, 50, "many"),
    ],
)
def test_any_table_fits(shape: tuple[int, int, int], number: int, columns: int, title: str) -> None:
    names = [["a"] * columns, ["a long label beside a row"] * (number // columns)]
    note = "a note that is longer than many tables are wide, and says so"
    for words in ({}, {"columns": names[0], "rows": names[1], "note": note}):
        image = np.zeros((number, *shape))
        figure = figures.image_table(image, title, num_columns=columns, **words)  # type: ignore[arg-type]
        assert_nothing_is_cut_off(figure)
        assert figure.get_size_inches()[0] < 10


def test_pixels_of_a_table_are_squares_of_equal_size() -> None:
    image = (np.indices((28, 28)).sum(axis=0) % 2).reshape(1, 28, 28, 1).repeat(10, axis=0)
    picture = pixels(figures.image_table(image, "", num_columns=10))[..., 0]
    middle = picture[len(picture) * 2 // 3]
    assert set(np.unique(picture)) == {0, 1}
    runs = np.diff(np.flatnonzero(np.diff(middle) != 0))
    black = runs[: len(runs) // 2 * 2 : 2]
    assert len(set(black.tolist())) == 1


# The page of an evaluation.


def findings(num_classes: int, channels: int = 1, num_pairs: int = 12) -> Page:
    shown = min(num_classes, page.MOST_CLASSES)
    shape = (8, 6, channels)
    # Image i is of one grey level, so that its place can be read off.
    original = np.linspace(0, 0.5, num_pairs).reshape(-1, 1, 1, 1) * np.ones(shape)
    drawn = np.linspace(0, 1, 10 * shown).reshape(-1, 1, 1, 1) * np.ones(shape)
    names = ["negative ELBO, grey levels", "KL, binarised", "conditional accuracy"]
    return Page(
        original=original,
        reconstruction=original + 0.5,
        samples=drawn,
        confusion=np.eye(num_classes, dtype=int) * 90 + 1,
        kl=np.array([0.5, 2.0, 0.0, 1.0]),
        is_active=np.array([True, True, False, True]),
        history=[EpochMetrics(1, 10, 3.0, 2.0, 1.0, 3.5, 2.5, 1.0, 9.0)],
        measurements={name: share((i + 1) / 20, 100, "") for i, name in enumerate(names)},
        classes=[str(i) for i in range(num_classes)],
    )


@pytest.mark.parametrize(
    ("num_classes", "channels", "num_pairs"), [(10, 1, 50), (2, 3, 4), (256, 1, 1)]
)
def test_every_kind_of_data_set_fits_the_page(
    num_classes: int, channels: int, num_pairs: int
) -> None:
    figure = draw_page(findings(num_classes, channels, num_pairs), "a title")
    assert_nothing_is_cut_off(figure)
    numbers = len(figure.axes[2].texts)
    assert numbers == (num_classes**2 if num_classes <= page.MOST_CLASSES else 0)


def test_what_was_not_measured_has_no_panel() -> None:
    nothing: np.ndarray = np.array(())
    found = findings(3)._replace(confusion=nothing, kl=nothing, is_active=nothing)
    figure = draw_page(found, "a title")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("test images")
    assert titles[1:] == ["samples, a row for each class", "", "loss"]


def test_each_reconstruction_stands_under_its_image() -> None:
    figure = draw_page(findings(10), "a title")
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    gap = 1
    assert canvas.shape == (4 * (8 + gap) - gap, 10 * (6 + gap) - gap)
    for i in range(12):
        row, column = divmod(i, 10)
        top, left = 2 * row * (8 + gap), column * (6 + gap)
        below = top + 8 + gap
        level = 0.5 * i / 11
        np.testing.assert_allclose(canvas[top : top + 8, left : left + 6], level)
        np.testing.assert_allclose(canvas[below : below + 8, left : left + 6], level + 0.5)
    np.testing.assert_allclose(
        canvas[2 * (8 + gap) :, 2 * (6 + gap) :], 1
    )  # white where there is none


def test_the_confusion_matrix_is_in_per_cent_of_what_was_asked_for() -> None:
    confusion = np.array([[3, 1, 0], [0, 10, 0], [0, 0, 0]])  # the last was never asked for
    axes = draw_page(findings(3)._replace(confusion=confusion), "a title").axes[2]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "75.0", (1, 0): "25.0", (1, 1): "100.0"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seen", "asked for")


def test_the_latent_is_drawn_from_the_most_used_dimension_down() -> None:
    axes = draw_page(findings(2), "a title").axes[4]
    heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert heights == [2.0, 1.0, 0.5, 0.0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["3 active", "1 collapsed"]


def test_the_figures_stand_on_the_page() -> None:
    found = findings(2)
    words = [text.get_text() for text in draw_page(found, "a title").axes[3].texts]
    accuracy = str(found.measurements["conditional accuracy"])
    assert words[words.index("conditional accuracy") - 1] == accuracy
    assert len(words) == 4  # two of the three are shown


@pytest.mark.parametrize("label", [[0, 1, 2] * 30, [30, 31], [7], list(range(256))])
def test_images_of_the_classes_that_there_are_are_chosen_in_turn(label: list[int]) -> None:
    chosen = choose_images(np.array(label))
    shown = sorted(set(label))[: page.MOST_CLASSES]
    assert len(set(chosen)) == len(chosen) <= 50
    assert [label[i] for i in chosen[: len(shown)]] == shown
    assert set(np.array(label)[chosen]) == set(shown)


def test_tall_and_wide_images_make_a_grid_of_bounded_size() -> None:
    for shape in ((300, 1, 1), (1, 300, 1)):
        figure = figures.image_grid(np.zeros((64, *shape)), range(64), "", num_columns=8)
        assert max(figure.get_size_inches()) < 25
