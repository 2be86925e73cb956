"""TFDS without TensorFlow, on small files that stand in for the official ones."""

import contextlib
import functools
import gzip
import http.server
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvae_jax.config import Source
from cvae_jax.data import download, tfds
from cvae_jax.data.dataset import Dataset, Splits
from cvae_jax.data.sources import load_dataset
from cvae_jax.errors import DataError

PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
FILES = [f"{part}-ubyte.gz" for part in PARTS]
RNG = np.random.default_rng(0)
TRAIN, TEST = (
    Dataset(RNG.integers(0, 256, (n, 28, 28, 1), np.uint8), np.arange(n, dtype=np.int32) % 10)
    for n in (30, 12)
)
FINGERPRINT = Splits(TRAIN, TEST, 10).fingerprint()


def write_official(folder: Path) -> Path:
    """Write the four files of the small data set under their official names."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (TRAIN.image[..., 0], TRAIN.label, TEST.image[..., 0], TEST.label)
    for name, array in zip(FILES, map(np.asarray, arrays), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(gzip.compress(content, mtime=0))
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the official files; a fault may meet the third of them."""

    fault: Callable[["Handler", bytes], None] | None = None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.path = f"/{self.path.rpartition('/')[2]}"
        fault = type(self).fault
        if fault is None or not self.path.endswith(FILES[2]):
            return super().do_GET()
        self.close_connection = True
        return fault(self, Path(self.translate_path(self.path)).read_bytes())

    def send(self, content: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def internet(official: Path, fault: Any = None) -> Iterator[str]:
    """Let TFDS's builders name a server on this machine, and the digests of its files."""
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    handler = type("Server", (Handler,), {"fault": fault and staticmethod(fault)})
    serve = functools.partial(handler, directory=official)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, builder in (("mnist", tfds_mnist.MNIST), ("kmnist", tfds_mnist.KMNIST)):
            infos = {f"{url}{name}/{f}": checksums.compute_url_info(official / f) for f in FILES}
            patch.setattr(builder, "URL", f"{url}{name}/")
            patch.setattr(builder, "url_infos", infos)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            yield url
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse all connections."""

    def refuse(_: socket.socket, address: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(name: str, data_dir: Path) -> Splits:
    return load_dataset(name, source="tfds", data_dir=data_dir)


@pytest.fixture(scope="module")
def prepared_once(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    with internet(official):
        load("mnist", data_dir)
    return data_dir


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    """Return a prepared data directory, packed arrays included, that a test may damage."""
    return Path(shutil.copytree(prepared_once, tmp_path / "tensorflow_datasets"))


def version_folder(data_dir: Path, *, packed: bool = True) -> Path:
    [folder] = (data_dir / "mnist").iterdir()
    if not packed:
        shutil.rmtree(folder / "cvae_jax")
    return folder


# Preparing and reading.


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_what_is_prepared_without_tensorflow_is_the_official_data_in_order(
    name: str, official: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    leftover = tmp_path / name / "incomplete.1A2B3C_3.0.1"  # of a killed run
    leftover.mkdir(parents=True)
    (leftover / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    with internet(official):
        assert load(name, tmp_path).fingerprint() == FINGERPRINT
    assert "tensorflow" not in sys.modules
    assert "Downloading data" not in capfd.readouterr().err  # Pooch's own words


def test_tfds_itself_opens_it_and_stores_it_shuffled(prepared_once: Path) -> None:
    import tensorflow_datasets

    source = tensorflow_datasets.data_source("mnist", split="train", data_dir=prepared_once)
    stored = [example["image"].tobytes() for example in source]
    original = [image.tobytes() for image in np.asarray(TRAIN.image)]
    assert sorted(stored) == sorted(original)
    assert stored != original


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["auto", "tfds"])
@pytest.mark.parametrize("variable", ["{}", ""])
def test_what_is_prepared_where_tfds_keeps_it_comes_first_and_needs_no_tfds(
    source: Source, variable: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules, "tensorflow_datasets"]:
        if name.startswith("tensorflow_datasets"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("HOME", str(prepared.parent))
    monkeypatch.setenv("TFDS_DATA_DIR", variable.format(prepared))
    assert load_dataset("mnist", source=source).fingerprint() == FINGERPRINT
    assert load_dataset(source=source, data_dir=str(prepared)).fingerprint() == FINGERPRINT


# The packed arrays.


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x55
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def fewer_classes(path: Path) -> None:
    about = json.loads(path.read_text())
    wrong = Splits(TRAIN, TEST, num_classes=7).fingerprint()
    path.write_text(json.dumps(about | {"num_classes": 7, "fingerprint": wrong}))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train_image", flip),
        ("train_label", flip),
        ("test_image", cut),
        ("test_label", cut),
        ("test_label", Path.unlink),
        ("about.json", fewer_classes),
        ("about.json", cut),
    ],
)
def test_damaged_packed_arrays_are_reported_and_made_anew(
    name: str, damage: Callable[[Path], None], prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = version_folder(prepared) / "cvae_jax"
    damage(kept / name)
    for warnings in ([True], []):
        caplog.clear()
        assert load("mnist", prepared).fingerprint() == FINGERPRINT
        assert [f"{kept} is damaged" in message for message in caplog.messages] == warnings
    assert not list(kept.parent.glob(".*"))


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = version_folder(prepared, packed=False) / "cvae_jax"

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    assert load("mnist", prepared).fingerprint() == FINGERPRINT
    assert [f"{kept} can't be written" in message for message in caplog.messages] == [True]
    assert not kept.exists()
    assert not list(kept.parent.glob(".*"))


# What is found in the data directory.


def write_info(folder: Path, file_format: str = "array_record") -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(f'{{"fileFormat": "{file_format}"}}')
    return folder / "dataset_info.json"


def test_the_newest_version_is_taken_and_other_folders_are_not(tmp_path: Path) -> None:
    for name in ("9.0.0.old", "9.0.0 (copy)", "notes"):
        write_info(tmp_path / "mnist" / name)
    assert tfds.find_prepared("mnist", tmp_path) is None
    write_info(tmp_path / "mnist" / "4.0.0", "tfrecord")
    for version in ("3.0.1", "3.0.10", "3.0.9", "2.9.99"):
        write_info(tmp_path / "mnist" / version)
    assert tfds.find_prepared("mnist", tmp_path) == tmp_path / "mnist" / "3.0.10"


@pytest.mark.parametrize("content", [b"[]", b"[" * 100_000, b"\xff"])
def test_a_damaged_description_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = write_info(tmp_path / "mnist" / "3.0.1")
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} can't be read.*delete its folder"):
        load("mnist", tmp_path)


def test_tfrecords_are_left_alone(prepared: Path) -> None:
    folder = version_folder(prepared)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    with pytest.raises(DataError, match=f"{folder} .*TensorFlow.*another --data-dir"):
        load("mnist", prepared)
    after = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    assert after == before
    assert len(load_dataset("mnist", data_dir=prepared).train.label) == 60_000  # the bundled one


@pytest.mark.parametrize("damage", [Path.unlink, functools.partial(flip, place=0.1)])
@pytest.mark.parametrize("name", ["features.json", "mnist-train.array_record-00000-of-00001"])
def test_damaged_prepared_data_are_an_error_that_names_the_folder(
    name: str, damage: Callable[[Path], None], prepared: Path
) -> None:
    folder = version_folder(prepared, packed=False)
    damage(folder / name)
    with pytest.raises(DataError, match=f"{folder} can't be read.*delete that folder"):
        load("mnist", prepared)


CLASS_LABEL = (
    '"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel"'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"numClasses": "10"', '"numClasses": "7"', "labels from 0 to 9, outside .* 0 to 6"),
        *(
            (CLASS_LABEL, f'"{key}": "hostile.Label"', "foreign class 'hostile.Label'")
            for key in ("pythonClassName", "python_class_name", "type")
        ),
    ],
)
def test_features_that_cannot_be_trusted_are_an_error_and_import_nothing(
    old: str, new: str, message: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared / "hostile.py").write_text("import sys; sys.hostile_ran = True")
    monkeypatch.syspath_prepend(prepared)
    features = version_folder(prepared, packed=False) / "features.json"
    assert old in features.read_text()
    features.write_text(features.read_text().replace(old, new))
    with pytest.raises(DataError, match=f"{features.parent} can't be read .*{message}"):
        load("mnist", prepared)
    assert not hasattr(sys, "hostile_ran")


# Files that are there already.


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", ""), ("mnist", "mnist"), ("kmnist", "kmnist")]
)
def test_files_put_there_by_hand_are_used(
    name: str, folder: str, official: Path, tmp_path: Path
) -> None:
    write_official(tmp_path / "downloads" / "manual" / folder)
    with internet(official):
        assert load(name, tmp_path).fingerprint() == FINGERPRINT


@pytest.mark.usefixtures("offline")
def test_files_put_there_by_hand_must_have_the_known_digests(tmp_path: Path) -> None:
    manual = write_official(tmp_path / "downloads" / "manual" / "mnist")
    # Here TFDS knows the digests of the real MNIST.
    with pytest.raises(DataError, match=f"{FILES[0]} can't be downloaded .*original.* {manual}"):
        load("mnist", tmp_path)
    assert tfds.find_prepared("mnist", tmp_path) is None


def test_what_tfds_itself_has_downloaded_is_used_unless_it_is_damaged(
    official: Path, tmp_path: Path
) -> None:
    import tensorflow_datasets
    from tensorflow_datasets.image_classification.mnist import MNIST

    with internet(official):
        tensorflow_datasets.download.DownloadManager(
            download_dir=tmp_path / "downloads", url_infos=MNIST.url_infos, dataset_name="mnist"
        ).download([MNIST.URL + file for file in FILES])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", None)
            assert load("mnist", tmp_path).fingerprint() == FINGERPRINT
        shutil.rmtree(tmp_path / "mnist")
        for path in (tmp_path / "downloads" / "mnist").iterdir():
            flip(path)
        assert load("mnist", tmp_path).fingerprint() == FINGERPRINT


# The network fails.


def wait_for_hang_up(handler: Handler, content: bytes = b"") -> None:
    handler.connection.settimeout(5)  # lest a broken test hangs
    handler.connection.recv(1)


def stall(handler: Handler, content: bytes) -> None:
    handler.send(content[: len(content) // 2], len(content))
    wait_for_hang_up(handler)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda handler, _: handler.send_error(503), "503 Server Error"),
        (wait_for_hang_up, "Read timed out"),
        (stall, "Read timed out"),
        (lambda handler, content: handler.send(content[:-9], len(content)), ""),
        (lambda handler, content: handler.send(content[:-1] + b"x", len(content)), "hash"),
    ],
    ids=["503", "silent", "stalling", "hanging up", "another digest"],
)
def test_a_fault_of_the_network_is_one_error_and_the_next_run_goes_on(
    fault: Any, message: str, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_WAIT_SECONDS", 0.3)
    expected = (
        f"mnist/{FILES[2]} can't be downloaded .*{message}.*{tmp_path}/downloads/manual/mnist"
    )
    with internet(official, fault), pytest.raises(DataError, match=expected) as caught:
        load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "downloads" / "mnist").iterdir())) == 2  # no part of the third
    assert not (tmp_path / "mnist").exists()
    with internet(official):
        assert load("mnist", tmp_path).fingerprint() == FINGERPRINT
