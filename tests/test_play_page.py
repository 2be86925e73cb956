"""The page to play with, in a real Chromium without a network, opened as a file.

They skip where Playwright or a Chromium is missing: pip install -e '.[browser]', and Debian's
package chromium.
"""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import cvae_jax
from cvae_jax.config import ModelConfig
from cvae_jax.data.dataset import Splits
from cvae_jax.drawing.play_page import Facts, measure, play_page
from cvae_jax.models import build_model
from cvae_jax.models.family import Model, Params
from cvae_jax.models.objective import elbo_terms
from tests.helpers import random_params

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

MNIST = (28, 28, 1)
KINDS = {
    "mlp": ModelConfig(MNIST, 10, hidden_dim=40, latent_dim=7),
    "mlp, flow": ModelConfig(MNIST, 10, prior="flow", hidden_dim=40, latent_dim=7),
    "mlp, flow, one dimension": ModelConfig((3, 5, 1), 2, prior="flow", latent_dim=1),
    "conv": ModelConfig(MNIST, 10, name="conv", channels=6, latent_dim=8),
    "conv, flow": ModelConfig(MNIST, 10, name="conv", prior="flow", channels=6, latent_dim=9),
    "conv, colour": ModelConfig((9, 11, 3), 12, name="conv", channels=3, latent_dim=5),
}
# What a text may be, what it says of it, and how many digits it draws.
TEXTS = {
    "": "Type some digits",
    "2026": "",
    "20 26": "",
    "hello 7": "5 characters left out",
    "7\U0001f600": "1 character left out",
    "\uff12\u00b2": "",  # full-width and superscript
    "\u0663\u200b\x00<img src=x onerror=alert(1)>": "left out",
    "0123456789" * 100: "",
    "x" * 3000: "Type some digits",
}
FRAGMENTS = (
    "%",
    "=&=&&#",
    "text=7%E0%A4%A&a=%00",
    "a=z&b=z!!!!&mix=NaN&temperature=Infinity&directions=,,x,1e99",
    "a=99999999999999999999&b=-1&mix=-5&temperature=1e9&grey=7",
    "text=" + "9" * 5000,
    "a=z" + "A" * 5000,
    "<script>alert(1)</script>",
)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Return a function that opens a file; at the end nothing has failed or gone elsewhere."""
    context, faults = browser.new_context(offline=True, accept_downloads=True), []

    def visit(path: Path, fragment: str = "", **size: int) -> "Page":
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda request: faults.append(request.url) if away(request.url) else 0)
        page.set_viewport_size({"width": 1280, "height": 900} | size)
        page.goto(f"{path.as_uri()}#{fragment}" if fragment else path.as_uri())
        return ready(page)

    yield visit
    context.close()
    assert faults == []


def away(url: str) -> bool:
    return not url.startswith(("file:", "blob:"))


def ready(page: "Page") -> "Page":
    """Return a page that has drawn all that it was asked for."""
    page.wait_for_function("window.play")
    page.evaluate("async () => { await play.redraw(); await play.readDrawing(); }")
    return page


def random_model(config: ModelConfig) -> tuple[Model, Params]:
    """Return a model without a zero, as some have before training, of numbers that float16 has."""
    model = build_model(config)
    return model, jax.tree.map(
        lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), random_params(model)
    )


def some_facts(model: Model) -> Facts:
    axes = np.eye(model.latent_dim)
    return Facts(axes, np.full(len(axes), 0.5), -100, 20, 0.7, True, np.ones((2, len(axes))))


def write(path: Path, model: Model, params: Params, facts: Facts) -> Path:
    path.write_text(play_page(model, params, facts, "a <model>"), "utf-8")
    return path


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Model, Params]:
    model, params = random_model(KINDS[request.param])
    path = tmp_path_factory.mktemp("kind") / "play.html"
    return write(path, model, params, some_facts(model)), model, params


@pytest.mark.parametrize(
    ("names", "heading", "text", "classes", "note"),
    [
        (("A", "B", "d"), "Any letter in any hand", "aD Bx", [0, 2, None, 1], "writes A to d only"),
        (("Bag", "</script>", "Coat"), "Any class in any hand", "201", [2, 0, 1], ""),
    ],
    ids=["letters", "things"],
)
def test_classes_have_their_names(
    names: tuple[str, ...],
    heading: str,
    text: str,
    classes: list[int | None],
    note: str,
    tmp_path: Path,
    visit: Callable[..., "Page"],
) -> None:
    config = ModelConfig(MNIST, len(names), hidden_dim=8, latent_dim=3, class_names=names)
    model, params = random_model(config)
    page = visit(write(tmp_path / "play.html", model, params, some_facts(model)))
    assert page.title() == page.locator("h1").inner_text() == heading
    assert page.locator("#bars .bar span:first-child").all_inner_texts() == list(names)
    page.locator("#typed").fill(text)
    ready(page)
    shown = page.locator("#text").get_attribute("aria-label") or ""
    joined = " " if max(map(len, names)) > 1 else ""
    assert shown == f"{joined.join(' ' if c is None else names[c] for c in classes)}, in one hand"
    assert note in page.locator("#note").inner_text()


def test_pixels_are_those_of_jax(
    kind: tuple[Path, Model, Params], visit: Callable[..., "Page"]
) -> None:
    path, model, params = kind
    page, classes = visit(path), np.arange(model.config.num_classes, dtype=np.int32)
    decode = jax.jit(model.decode)
    for scale in (0, 1, 1, 2):
        latent = scale * np.random.default_rng(scale).standard_normal(model.latent_dim)
        drawn = page.evaluate(
            "async ([z, y]) => (await play.decode(z, y)).map((x) => [...x])",
            [latent.tolist(), classes.tolist()],
        )
        latents = jnp.tile(jnp.asarray(latent, jnp.float32), (len(classes), 1))
        logits = decode(params, latents, jnp.asarray(classes))
        expected = np.asarray(jax.nn.sigmoid(logits)).reshape(len(classes), -1)
        np.testing.assert_allclose(drawn, expected, atol=1e-4, rtol=0)
        assert scale == 0 or expected.std() > 0.01


def test_latents_and_bounds_are_those_of_jax(
    kind: tuple[Path, Model, Params], visit: Callable[..., "Page"]
) -> None:
    path, model, params = kind
    classes = np.arange(model.config.num_classes, dtype=np.int32)
    page = visit(path)
    image = np.random.default_rng(0).random(model.config.image_shape, np.float32) ** 4
    found = page.evaluate(
        "async ([x, y]) => (await play.encode(x, y)).map((one) => [[...one.latent], one.bound])",
        [image.ravel().tolist(), classes.tolist()],
    )
    images, zeros = np.stack([image] * len(classes)), np.zeros((len(classes), model.latent_dim))
    arrays = jnp.asarray(images), jnp.asarray(classes), jnp.asarray(zeros, jnp.float32)
    latent = jax.jit(model.autoencode)(params, *arrays).latent
    terms = jax.jit(partial(elbo_terms, model=model))(params, *arrays)
    bound = np.asarray(terms.log_likelihood - terms.kl.sum(axis=-1))
    np.testing.assert_allclose([one[0] for one in found], latent, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([one[1] for one in found], bound, rtol=1e-4)


# ------------------------------------------------------------------- with a model that was trained


@pytest.fixture(scope="module")
def trained(
    mnist: Splits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, cvae_jax.TrainedModel]:
    folder = tmp_path_factory.mktemp("trained")
    schedule: dict[str, Any] = {"schedule": "cosine", "warmup_steps": 100}
    model = cvae_jax.train(
        mnist, epochs=8, workdir=folder, batch_size=256, learning_rate=4e-3, **schedule
    )
    image, label = np.asarray(mnist.test.image), np.asarray(mnist.test.label)
    facts = measure(model.model, model.params, image[:1000] / np.float32(255), label[:1000])
    return write(folder / "play.html", model.model, model.params, facts), model


@pytest.fixture
def home(trained: tuple[Path, cvae_jax.TrainedModel]) -> Path:
    return trained[0]


def picture(page: "Page", name: str = "text") -> str:
    return str(page.evaluate(f"document.getElementById('{name}').toDataURL()"))


def address(page: "Page") -> str:
    page.wait_for_timeout(400)  # it is written a moment after the last change
    return str(page.evaluate("location.hash.slice(1)"))


def ink(page: "Page", name: str) -> float:
    """Return the share of a canvas that is inked."""
    image = imread(io.BytesIO(base64.b64decode(picture(page, name).partition(",")[2])))
    return float((np.asarray(image)[..., -1] > 0.5).mean())


def slide(page: "Page", selector: str, value: float) -> None:
    page.locator(selector).first.evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", value
    )
    ready(page)


def draw(page: "Page", *strokes: list[tuple[float, float]]) -> None:
    """Draw lines with the mouse, in shares of the drawing area."""
    page.locator("#pad").evaluate("(pad) => pad.scrollIntoView({ block: 'center' })")
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for points in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=8)
        page.mouse.up()
    ready(page)


def test_the_page_is_one_file_hardly_larger_than_its_weights(
    trained: tuple[Path, cvae_jax.TrainedModel],
) -> None:
    path, model = trained
    number = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert path.stat().st_size < number * 2 * 4 / 3 + 100_000
    text = path.read_text("utf-8")
    assert "://" not in text
    assert "a &lt;model&gt;" in text


def test_weights_as_float16_change_no_pixel_by_two_grey_levels(
    trained: tuple[Path, cvae_jax.TrainedModel], mnist: Splits, visit: Callable[..., "Page"]
) -> None:
    path, model = trained
    page, classes = visit(path), np.arange(10)
    for i in range(5):
        image, label = np.asarray(mnist.test.image[i]), int(mnist.test.label[i])
        found = page.evaluate(
            """async ([x, y]) => {
              const [{ latent }] = await play.encode(x, [y]);
              const images = await play.decode(latent, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
              return [[...latent], images.map((x) => [...x])];
            }""",
            [(image / 255).ravel().tolist(), label],
        )
        latent = model.encode(image, label)
        np.testing.assert_allclose(found[0], latent, atol=0.02)
        drawn = model.decode(np.tile(latent, (10, 1)), classes).reshape(10, -1)
        np.testing.assert_allclose(found[1], drawn, atol=2 / 255, rtol=0)


def test_a_text_is_drawn_and_another_one_differs(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    assert page.input_value("#typed") == "0123456789"
    first = picture(page)
    page.fill("#typed", "2026")
    assert picture(ready(page)) != first
    assert page.get_attribute("#text", "aria-label") == "2026, in one hand"
    assert 0.03 < ink(page, "text") < 0.4


@pytest.mark.parametrize(
    ("selector", "value"),
    [("#mix", 0.5), ("#temperature", 0.2), ("#sliders input", 2.5)],
)
def test_a_slider_changes_the_picture_and_a_link_shows_it_again(
    selector: str, value: float, home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home)
    before = picture(page)
    slide(page, selector, value)
    page.fill("#typed", "31")
    after = picture(ready(page))
    assert after != before
    other = visit(home, address(page))
    assert picture(other) == after
    assert float(other.locator(selector).first.input_value()) == value


def test_shuffling_draws_other_hands(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    seen = {picture(page)}
    for button in ("#shuffle", "#shuffle", "[data-shuffle='0']"):
        page.click(button)
        seen.add(picture(ready(page)))
    assert len(seen) == 4
    assert picture(visit(home, address(page))) == picture(page)


def test_a_digit_drawn_with_the_mouse_is_read_and_its_hand_writes(
    home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home)
    assert ink(page, "mine") == 0
    before = picture(page)
    draw(page, [(0.58, 0.15), (0.42, 0.85)])
    assert page.inner_text("#belief").startswith("The model reads it as 1 (")
    assert page.get_attribute(".bar >> nth=1", "aria-pressed") == "true"
    mine = picture(page, "mine")
    assert ink(page, "mine") > 0.02
    page.click(".bar >> nth=7")
    assert picture(ready(page), "mine") != mine
    assert page.inner_text("#belief").endswith("you as 7.")
    page.click("text=Write the text in this hand")
    assert picture(ready(page)) != before
    hand, found = page.evaluate(
        """async () => {
          const [{ latent }] = await play.encode(play.drawnImage(), [7]);
          return [[...play.state.hands[0].latent], [...latent]];
        }"""
    )
    np.testing.assert_allclose(hand, found, atol=0.001)
    assert picture(visit(home, address(page))) == picture(page)
    page.click("#clear")
    ready(page)
    assert ink(page, "mine") == 0
    assert page.is_disabled("text=Write the text in this hand")


def test_a_scribble_is_read_with_a_warning(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    draw(page, [(x, y) for y in np.linspace(0.1, 0.9, 7) for x in (0.1, 0.9)])
    assert "do not trust" in page.inner_text("#honest")


def test_the_text_is_saved_as_a_picture(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home, "text=20261")
    with page.expect_download() as download:
        page.click("#save")
    image = np.asarray(imread(download.value.path()))
    assert download.value.suggested_filename == "handwriting.png"
    assert image.shape[1] > 3 * image.shape[0] >= 900
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert 0.03 < (image[..., 0] < 0.5).mean() < 0.4
    page.fill("#typed", "")
    ready(page)
    assert page.is_disabled("#save")


@pytest.mark.parametrize("width", [1280, 390, 200])
def test_any_text_gives_something_sensible(
    width: int, home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home, width=width, height=844)
    for text, note in TEXTS.items():
        page.fill("#typed", text)
        ready(page)
        assert note in page.inner_text("#note")
        assert bool(note) == bool(page.inner_text("#note"))
        assert (ink(page, "text") > 0.01) == (not note.startswith("Type"))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # It never hides what one draws with.
        assert page.evaluate("document.getElementById('sheet').clientHeight") < 0.5 * 844


def test_any_address_gives_something_sensible(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    for fragment in FRAGMENTS:
        page.goto("about:blank")
        page.goto(f"{home.as_uri()}#{fragment}")
        assert ink(ready(page), "text") > 0.01
        state = page.evaluate("play.state")
        assert 0 <= state["mix"] <= 1
        assert 0 <= state["temperature"] <= 2
        assert len(state["text"]) <= 2000


def test_an_address_that_changes_is_followed(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home, "text=1&a=5")
    other = picture(visit(home, "text=22&a=6"))
    page.evaluate("location.hash = 'text=22&a=6'")
    page.wait_for_function("document.getElementById('typed').value === '22'")
    assert picture(ready(page)) == other


def test_fast_typing_ends_with_the_last_text(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    text = "31415926535897932384626433832795"
    page.evaluate(
        """(text) => { // faster than anything is drawn
          const input = document.getElementById("typed");
          for (let i = 0; i <= text.length; i++) {
            input.value = text.slice(0, i);
            input.dispatchEvent(new Event("input"));
          }
        }""",
        text,
    )
    page.wait_for_function(f"document.getElementById('text').ariaLabel.startsWith('{text}')")
    assert picture(page) == picture(visit(home, f"text={text}"))


def test_everything_is_reached_and_used_with_the_keyboard(
    home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home)
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    for name in ("typed", "shuffle", "save", "temperature", "grey", "mix", "pad", "clear", "reset"):
        assert name in seen
    assert any(str(name).startswith("Direction 1,") for name in seen)
    page.focus("#mix")
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("#mix")) > 0
    page.focus("#pad")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    ready(page)
    assert page.inner_text("#belief").startswith("The model reads it as 1 (")


def test_every_control_and_picture_has_a_name(home: Path, visit: Callable[..., "Page"]) -> None:
    page = visit(home)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, [role=img], #pad")].filter((one) =>
          !(one.ariaLabel || one.textContent.trim() || one.labels?.[0]?.textContent.trim()))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(
    scheme: str, home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home)
    page.emulate_media(color_scheme=scheme)
    lightness = page.evaluate(
        """() => ["color", "backgroundColor"].map((name) =>
          getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3)
            .reduce((sum, x) => sum + x / 765, 0))"""
    )
    assert (lightness[0] < 0.2 < 0.8 < lightness[1]) == (scheme == "light")
    assert (lightness[1] < 0.2 < 0.8 < lightness[0]) == (scheme == "dark")


def test_of_100_test_images_drawn_on_the_page_90_come_back_as_their_digit(
    mnist: Splits, home: Path, visit: Callable[..., "Page"]
) -> None:
    page, random = visit(home), np.random.default_rng(0)
    right = 0
    for i in range(100):
        size = random.uniform(120, 280)
        place = random.uniform(0, 280 - size, 2).tolist()
        pixels = np.asarray(mnist.test.image[i]).ravel().tolist()
        bounds = page.evaluate(
            """async ([pixels, size, x, y]) => {
              const small = new OffscreenCanvas(28, 28), data = new ImageData(28, 28);
              pixels.forEach((value, i) => { data.data[4 * i + 3] = value; });
              small.getContext("2d").putImageData(data, 0, 0);
              const pen = document.getElementById("pad").getContext("2d");
              pen.clearRect(0, 0, 280, 280);
              pen.drawImage(small, x, y, size, size);
              const found = await play.encode(play.drawnImage(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
              return found.map(({ bound }) => bound);
            }""",
            [pixels, size, *place],
        )
        right += int(np.argmax(bounds)) == int(mnist.test.label[i])
    assert right >= 90


def test_a_drawing_is_prepared_as_mnist_was(
    mnist: Splits, home: Path, visit: Callable[..., "Page"]
) -> None:
    page = visit(home)
    for image in np.asarray(mnist.test.image[:20, ..., 0]):
        # Ten times as large, somewhere else on a larger canvas; 0.2 and less would be no ink.
        image = np.where(image > 0, np.maximum(image, 60), 0) / 255
        large = np.zeros((400, 300), np.float32)
        part = np.kron(trimmed(image), np.ones((10, 10)))
        large[150 : 150 + len(part), 20 : 20 + part.shape[1]] = part
        found = np.reshape(
            page.evaluate(
                "([ink, w, h]) => [...play.prepare(ink, w, h)]", [large.ravel().tolist(), 300, 400]
            ),
            (28, 28),
        )
        np.testing.assert_allclose(trimmed(found), trimmed(image), atol=1e-6)
        centre = [(found.sum(axis=axis) @ np.arange(28)) / found.sum() for axis in (1, 0)]
        np.testing.assert_allclose(centre, 14, atol=0.5)


def trimmed(image: np.ndarray) -> np.ndarray:
    """Return the part of an image that is not black."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_a_page_within_a_page_works_without_workers_and_address(
    home: Path, visit: Callable[..., "Page"], tmp_path: Path
) -> None:
    outer = visit(home)
    expected = picture(outer)
    text = home.read_text("utf-8").replace("<head>", "<head><script>delete self.Worker</script>")
    frame = text.replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "outer.html").write_text(
        f"<script>window.play = {{ redraw() {{}}, readDrawing() {{}} }}</script>"
        f'<iframe width="1280" height="900" style="border: 0" srcdoc="{frame}"></iframe>',
        "utf-8",
    )
    inner = visit(tmp_path / "outer.html", width=1400).frames[1]
    inner.wait_for_function("window.play")
    inner.evaluate("play.redraw()")
    inner.fill("#typed", "0123456789")
    inner.wait_for_timeout(400)  # the address is written
    inner.evaluate("play.redraw()")
    assert inner.evaluate("document.getElementById('text').toDataURL()") == expected
