import numpy as np
import pytest
from matplotlib.patches import Rectangle

from cvae_jax import overview
from cvae_jax.measures import share_of, write
from cvae_jax.types import EpochMetrics
from tests.test_assessment import MEASURES
from tests.test_figures import pixels


def findings(num_classes: int, channels: int = 1, num_pairs: int = 12) -> overview.Findings:
    shown = min(num_classes, overview.MOST_CLASSES)
    shape = (8, 6, channels)
    # Image i is of one grey level, so that its place can be read off.
    original = np.linspace(0, 0.5, num_pairs).reshape(-1, 1, 1, 1) * np.ones(shape)
    samples = np.linspace(0, 1, 10 * shown).reshape(-1, 1, 1, 1) * np.ones(shape)
    return overview.Findings(
        original=original,
        reconstruction=original + 0.5,
        samples=samples,
        confusion=np.eye(num_classes, dtype=int) * 90 + 1,
        kl=np.array([0.5, 2.0, 0.0, 1.0]),
        is_active=np.array([True, True, False, True]),
        history=[EpochMetrics(1, 10, 3.0, 2.0, 1.0, 3.5, 2.5, 1.0, 9.0)],
        measurements={name: share_of(i / 20, 100, "") for i, name in enumerate(MEASURES)},
    )


@pytest.mark.parametrize(
    ("num_classes", "channels", "num_pairs"), [(10, 1, 50), (2, 3, 4), (1, 1, 1), (256, 1, 20)]
)
def test_every_kind_of_data_set_fits_the_page(
    num_classes: int, channels: int, num_pairs: int
) -> None:
    figure = overview.draw_findings(findings(num_classes, channels, num_pairs), "a title")
    picture = pixels(figure)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert edge.min() == 1  # nothing is cut off
    confusion = figure.axes[2]
    numbers = len(confusion.texts)
    assert numbers == (num_classes**2 if num_classes <= overview.MOST_CLASSES else 0)


def test_each_reconstruction_stands_under_its_image() -> None:
    figure = overview.draw_findings(findings(10), "a title")
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    assert canvas.shape == (4 * (8 + 2), 10 * (6 + 2))
    for i in range(12):
        row, column = divmod(i, 10)
        top, left = 2 * row * 10, column * 8
        level = 0.5 * i / 11
        np.testing.assert_allclose(canvas[top : top + 8, left : left + 6], level)
        np.testing.assert_allclose(canvas[top + 10 : top + 18, left : left + 6], level + 0.5)
    np.testing.assert_allclose(canvas[20:, 2 * 8 :], 1)  # white where there is none


def test_the_confusion_matrix_is_in_per_cent_of_what_was_asked_for() -> None:
    found = findings(2)._replace(confusion=np.array([[3, 1], [0, 10]]))
    axes = overview.draw_findings(found, "a title").axes[2]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "75.0", (1, 0): "25.0", (1, 1): "100.0"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seen", "asked for")


def test_the_latent_is_drawn_from_the_most_used_dimension_down() -> None:
    axes = overview.draw_findings(findings(2), "a title").axes[4]
    heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert heights == [2.0, 1.0, 0.5, 0.0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["3 active", "1 collapsed"]


def test_the_figures_stand_on_the_page() -> None:
    found = findings(2)
    axes = overview.draw_findings(found, "a title").axes[3]
    words = [text.get_text() for text in axes.texts]
    value = found.measurements["conditional accuracy"]
    assert words[words.index("conditional accuracy") - 1] == write(value)
    assert len(words) == 22


@pytest.mark.parametrize("label", [[0, 1, 2] * 30, [30, 31], [7], list(range(256)), [5] * 99])
def test_images_of_the_classes_that_there_are_are_chosen_in_turn(label: list[int]) -> None:
    shown, chosen = overview.choose_images(np.array(label))
    assert list(shown) == sorted(set(label))[: overview.MOST_CLASSES]
    assert len(set(chosen)) == len(chosen) <= 50
    assert [label[i] for i in chosen[: len(shown)]] == list(shown)
    assert set(np.array(label)[chosen]) == set(shown)
