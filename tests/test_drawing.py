import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cvae_jax import cli, devices, drawing, experiment
from cvae_jax.config import TrainConfig
from cvae_jax.options import RunOptions, SampleOptions
from cvae_jax.types import ConfigError, Dataset, UserError
from tests.test_files import contents, mounted
from tests.test_idx import write_directory

SCRIPT = Path(__file__).parents[1] / "scripts" / "sample.py"
PATHS = [field.name for field in dataclasses.fields(SampleOptions) if "Path" in str(field.type)]
ENDINGS = {"out": ".png", "npz": ".npz"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a workdir in which a very small model of three classes was trained for one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    train, test = (
        Dataset(random.integers(0, 256, (n, 5, 4, 1), np.uint8), np.arange(n, dtype=np.int32) % 3)
        for n in (12, 6)
    )
    write_directory(data, train, test)
    experiment.train(
        TrainConfig(dataset="tiny", batch_size=4, hidden_dim=3, latent_dim=2),
        RunOptions(epochs=1, workdir=folder / "run", source="idx", data_dir=data, num_devices=1),
    )
    return folder / "run"


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a current folder with a link to the workdir where it is sought."""
    home = tmp_path / "a höme with spaces"
    (home / "runs").mkdir(parents=True)
    (home / "runs/mnist").symlink_to(trained)
    monkeypatch.chdir(home)
    return home


def draw(**options: Any) -> None:
    drawing.draw(SampleOptions(**options))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a", "a"),
        ("new/b c/ü 数", "new/b c/ü 数"),
        ("../a höme with spaces/a", "a"),
        ("~/new/a", "new/a"),
        ("link", "link"),
        ("linked/a", "folder/a"),
        ("-a\nb", "-a\nb"),
        ("\udcff", "\udcff"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("option", ENDINGS)
def test_a_path_may_be_written_in_many_ways(
    option: str, given: str, found: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    ending = ENDINGS[option]
    (home / "folder").mkdir()
    (home / "linked").symlink_to("folder")
    (home / "there").write_bytes(b"old")
    (home / f"link{ending}").symlink_to("there")
    with cli.one_line_errors():  # what is printed may not fit the output either
        draw(num=2, **{option: Path(given + ending)})
    start = b"PK" if option == "npz" else b"\x89PNG"
    assert (home / (found + ending)).read_bytes().startswith(start)
    assert (home / "there").read_bytes() == b"old"


@pytest.mark.parametrize(
    "workdir", ["runs/mnist", "./runs/../runs/mnist/", "~/runs/mnist", "run ü"]
)
def test_a_workdir_may_be_written_in_many_ways(
    workdir: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    (home / "run ü").symlink_to(home / "runs/mnist")
    draw(workdir=Path(workdir), num=2, npz=Path("a.npz"))
    assert (home / "a.npz").is_file()


BAD_PLACES = {
    "nobody's home": "~nosuchuser/new",
    "below a file": "file/new",
    "far below a file": "file/far/new",
    "a folder": "folder",
    "a pipe": "pipe",
    "a link to nothing": "nothing",
    "a link in a circle": "loop",
    "below a link to nothing": "nothing/new",
    "below a link in a circle": "loop/new",
    "too long": "x" * 300,
    "too deep": "x/" * 3000 + "x",
}


@pytest.mark.parametrize("option", ENDINGS)
@pytest.mark.parametrize("bad", BAD_PLACES)
def test_a_file_that_cannot_be_made_is_refused_before_anything_is_drawn_or_written(
    bad: str, option: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = ENDINGS[option]
    (home / "file").write_bytes(b"old")
    (home / f"folder{ending}").mkdir()
    os.mkfifo(home / f"pipe{ending}")
    for name in (f"nothing{ending}", "nothing"):
        (home / name).symlink_to("nowhere/at/all")
    for name in (f"loop{ending}", "loop"):
        (home / name).symlink_to(name)
    monkeypatch.setattr(drawing, "_sample_all", None)
    good = {"out": Path("good.png"), "npz": Path("good.npz")}
    before, workdir_before = contents(home), contents(home / "runs/mnist")
    with pytest.raises(ConfigError, match=rf"^--{option} ") as caught:
        draw(**good | {option: Path(BAD_PLACES[bad] + ending)})
    assert "\n" not in str(caught.value)
    assert contents(home) == before
    assert contents(home / "runs/mnist") == workdir_before


@pytest.mark.parametrize(
    "workdir",
    [
        "nowhere",
        "file",
        "file/below",
        "folder",
        "nothing",
        "~nosuchuser",
        "loop",
        "x" * 300,
        "x/" * 3000,
    ],
    ids=lambda value: value[:20],
)
def test_a_workdir_without_a_model_is_refused_and_not_made(workdir: str, home: Path) -> None:
    (home / "file").write_bytes(b"old")
    (home / "folder").mkdir()
    (home / "nothing").symlink_to("nowhere")
    (home / "loop").symlink_to("loop")
    before = contents(home)
    with pytest.raises(ConfigError) as caught:
        draw(workdir=Path(workdir), out=Path("new.png"), npz=Path("new.npz"))
    assert str(Path(workdir)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(home) == before


def test_every_option_that_is_a_path_is_tried_here() -> None:
    assert set(PATHS) == {*ENDINGS, "workdir"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"digit": -1}, "--digit -1 does not exist in tiny; choose 0 to 2"),
        ({"digit": 3}, "--digit 3 does not exist in tiny; choose 0 to 2"),
        ({"digit": 10**30}, f"--digit {10**30} does not exist in tiny; choose 0 to 2"),
        ({"step": 0}, r"--step 0 is not in runs/mnist/checkpoints; choose one of \[3\]"),
        ({"step": 2**31 - 1}, f"--step {2**31 - 1} is not in"),
        ({"num": 1001}, "--num 1001 is too many for a picture; choose up to 1000, or --npz"),
        ({"num": 2**31 - 1, "npz": "a.npz", "out": "a.png"}, "--num 2147483647 is too many"),
        ({"num": 2**31 - 1, "npz": "a.npz", "show": True}, "--num 2147483647 is too many"),
    ],
    ids=str,
)
def test_a_number_that_the_model_does_not_have_is_refused_with_those_it_has(
    options: dict[str, Any], expected: str, home: Path
) -> None:
    paths = {name: Path(options[name]) for name in ENDINGS if name in options}
    before = contents(home / "runs/mnist")
    with pytest.raises(ConfigError, match=f"^{expected}"):
        draw(**options | paths)
    assert contents(home / "runs/mnist") == before
    assert [path.name for path in home.iterdir()] == ["runs"]


def test_more_images_than_the_memory_holds_are_refused_before_any_is_drawn(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_machine_memory", lambda: 8_000_000_000)
    monkeypatch.setattr(drawing, "_sample_all", None)
    monkeypatch.setattr(drawing, "choose_labels", None)  # they alone would be 8.6 GB
    expected = "--num 2147483647 can't be used: 180.4 GB of memory are needed, and there are 8.0 GB"
    with pytest.raises(ConfigError, match=f"^{expected}"):
        draw(num=2**31 - 1, npz=Path("a.npz"))
    assert [path.name for path in home.iterdir()] == ["runs"]


def test_as_many_images_as_the_memory_holds_are_drawn(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_machine_memory", lambda: 2500 * (5 * 4 * 4 + 4))
    draw(num=2500, npz=Path("a.npz"))  # two batches and a half
    with np.load("a.npz") as arrays:
        assert arrays["image"].shape == (2500, 5, 4, 1)
        np.testing.assert_array_equal(arrays["label"], np.arange(2500) % 3)
    with pytest.raises(ConfigError, match=r"^--num 2501 "):
        draw(num=2501, npz=Path("b.npz"))


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """Give the folder of a file system of 64 kB in which 49 kB are taken."""
    with mounted(home / "disk", "size=64k") as folder:
        (folder / "other").write_bytes(bytes(48_000))
        yield folder


@pytest.mark.parametrize("option", ENDINGS)
def test_a_full_disk_is_one_line_and_the_old_file_stands(
    option: str, home: Path, small_disk: Path
) -> None:
    path = small_disk / f"old{ENDINGS[option]}"
    path.write_bytes(b"old")
    options = {"num": 1000 if option == "npz" else 50, option: path}
    expected = rf"^{path} can't be written: No space left on device \([0-9.]+ kB free there\)$"
    with pytest.raises(UserError, match=expected):
        draw(**options)
    assert sorted(p.name for p in small_disk.iterdir()) == [path.name, "other"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("option", ENDINGS)
@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="there is no shell to limit a process")
def test_a_file_that_may_not_grow_ends_the_command_in_one_line(option: str, home: Path) -> None:
    path = home / f"old{ENDINGS[option]}"
    path.write_bytes(b"old")
    # At most eight blocks of a file, of 512 or 1,024 bytes each.
    limited = ["/bin/sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable, str(SCRIPT)]
    done = subprocess.run(
        [*limited, "--num", "200" if option == "npz" else "50", f"--{option}", path.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {path.name} can't be written: File too large (")
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in home.iterdir()) == [path.name, "runs"]


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "stopped\n")],
)
@pytest.mark.parametrize("option", ENDINGS)
@pytest.mark.usefixtures("stays")
def test_a_signal_while_a_file_is_written_leaves_the_old_one_and_nothing_else(
    option: str,
    number: signal.Signals,
    status: int,
    line: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_half(file: Any, *_: Any, **__: Any) -> None:
        file.write(b"half")
        signal.raise_signal(number)

    monkeypatch.setattr(np.lib.format, "write_array", write_half)
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: write_half(file))
    path = home / f"old{ENDINGS[option]}"
    path.write_bytes(b"old")
    before = contents(home)
    # A job in the background of a shell, as these tests may be, ignores Ctrl-C.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop, cli.one_line_errors():
            draw(num=2, **{option: path})
    finally:
        signal.signal(signal.SIGINT, old)
    assert stop.value.code == status
    assert capsys.readouterr().err == line
    assert contents(home) == before
