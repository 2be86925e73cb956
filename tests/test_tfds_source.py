import contextlib
import functools
import gzip
import http.server
import json
import logging
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest

from cvae_jax import data, tfds_source
from cvae_jax.types import DataError, Dataset, Splits, UserError

FILES = tfds_source._FILES
SMALL_TRAIN, SMALL_TEST = 30, 12


def write_gz(directory: Path, splits: Splits) -> None:
    """Write the four files of a data set under their original names."""
    arrays = [a for d in (splits.train, splits.test) for a in (d.image[..., 0], d.label)]
    for name, array in zip(FILES, map(np.asarray, arrays), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.astype(np.uint8).tobytes()
        (directory / name).write_bytes(gzip.compress(content, compresslevel=1))


@pytest.fixture(scope="session")
def small() -> Splits:
    """Give a data set of the right shape whose images are all different."""
    rng = np.random.default_rng(0)

    def make(number: int) -> Dataset:
        image = rng.integers(0, 256, (number, 28, 28, 1), np.uint8)
        return Dataset(image, np.arange(number, dtype=np.int32) % 10)

    return Splits(make(SMALL_TRAIN), make(SMALL_TEST), num_classes=10)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    closing = False


@contextlib.contextmanager
def serve(handler: Callable[..., socketserver.BaseRequestHandler]) -> Iterator[str]:
    """Answer at an address of this machine, by threads; give the address as a URL."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.closing = True
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def download_from(url: str) -> Iterator[None]:
    """Let TFDS's builders download from folders below another address, each from its own."""
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, builder in tfds_source.NAMES.items():
            patch.setattr(getattr(tfds_mnist, builder), "URL", f"{url}{name}/")
        yield


def serve_files(name: str, splits: Splits, folder: Path) -> contextlib.AbstractContextManager[str]:
    """Stand in for the home of a data set in the network."""
    (folder / "home" / name).mkdir(parents=True)
    write_gz(folder / "home" / name, splits)
    return serve(functools.partial(QuietHandler, directory=folder / "home"))


def prepare(name: str, splits: Splits, folder: Path) -> Splits:
    with serve_files(name, splits, folder) as url, download_from(url):
        return tfds_source.load(name, folder / "data")


@pytest.fixture(scope="session")
def prepared_small(small: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    prepare("mnist", small, folder)
    return folder / "data"


@pytest.fixture
def prepared(prepared_small: Path, tmp_path: Path) -> Path:
    """Give a prepared data directory, cache included, that a test may damage."""
    return Path(shutil.copytree(prepared_small, tmp_path / "data"))


def version_folder(data_dir: Path) -> Path:
    found = tfds_source.find_prepared("mnist", data_dir)
    assert found is not None
    return found


# Preparing and reading.


def test_mnist_through_tfds_is_the_bundled_mnist_to_the_bit(mnist: Splits, tmp_path: Path) -> None:
    loaded = prepare("mnist", mnist, tmp_path)
    assert loaded.fingerprint() == mnist.fingerprint()
    np.testing.assert_array_equal(loaded.test.image, mnist.test.image, strict=True)
    np.testing.assert_array_equal(loaded.test.label, mnist.test.label, strict=True)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_relatives_of_mnist_go_the_same_way(name: str, small: Splits, tmp_path: Path) -> None:
    assert prepare(name, small, tmp_path).fingerprint() == small.fingerprint()
    assert tfds_source.find_prepared(name, tmp_path / "data") is not None


def test_what_was_prepared_is_a_data_set_that_tfds_opens_itself(
    prepared_small: Path, small: Splits
) -> None:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split="test", data_dir=prepared_small, download=False)
    stored = {(example["image"].tobytes(), int(example["label"])) for example in source}
    images, labels = np.asarray(small.test.image), np.asarray(small.test.label)
    assert stored == {(i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True)}


def test_tfds_shuffles_and_the_original_positions_undo_it(
    prepared_small: Path, small: Splits
) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(version_folder(prepared_small))
    for split, dataset in (("train", small.train), ("test", small.test)):
        stored = np.stack([example["image"] for example in builder.as_data_source(split)])
        image = np.asarray(dataset.image)
        assert not np.array_equal(stored, image)
        np.testing.assert_array_equal(
            stored, image[tfds_source._original_positions(split, len(image))]
        )


@pytest.mark.parametrize("number", [0, 1, 2, 999])
def test_original_positions_are_a_permutation(number: int) -> None:
    positions = tfds_source._original_positions("train", number)
    assert sorted(positions.tolist()) == list(range(number))


LOAD_IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
from cvae_jax import tfds_source

data_dir, url = sys.argv[1:]
if url:
    from tensorflow_datasets.image_classification import mnist
    mnist.KMNIST.URL = url + "kmnist/"
fingerprint = tfds_source.load("kmnist", Path(data_dir)).fingerprint()
modules = [name for name in ("tensorflow", "tensorflow_datasets") if name in sys.modules]
print(json.dumps([fingerprint, modules]))
"""


def load_in_a_fresh_process(data_dir: Path, url: str) -> list[Any]:
    output = subprocess.run(
        [sys.executable, "-c", LOAD_IN_A_FRESH_PROCESS, str(data_dir), url],
        cwd=Path(tfds_source.__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return list(json.loads(output.splitlines()[-1]))


def test_tensorflow_is_never_imported_and_tfds_only_the_first_time(
    small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_files("kmnist", small, tmp_path) as url:
        first = load_in_a_fresh_process(tmp_path / "data", url)
    second = load_in_a_fresh_process(tmp_path / "data", "")
    assert first == [small.fingerprint(), ["tensorflow_datasets"]]
    assert second == [small.fingerprint(), []]


# The cache.


def flip(place: float) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        position = int(place * (len(content) - 1))
        return content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(flip(place), id=f"byte at {place}") for place in (0, 0.3, 0.6, 0.9)),
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda content: content[:-1], id="last byte missing"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"\x80\x04N.", id="a pickle"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
    ],
)
def test_a_damaged_cache_is_noticed_told_and_made_anew(
    damage: Callable[[bytes], bytes],
    prepared: Path,
    small: Splits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = version_folder(prepared) / "cvae_jax.npz"
    cache.write_bytes(damage(cache.read_bytes()))
    assert tfds_source.load("mnist", prepared).fingerprint() == small.fingerprint()
    assert [str(cache) in m and "damaged" in m for m in caplog.messages] == [True]

    caplog.clear()
    assert tfds_source.load("mnist", prepared).fingerprint() == small.fingerprint()
    assert caplog.messages == []


def test_no_flipped_byte_of_the_cache_goes_unnoticed_or_ends_in_a_traceback(
    small: Splits, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.npz"
    one = Dataset(small.test.image[:1, :4, :4], small.test.label[:1])
    splits = Splits(one, one, 10)
    tfds_source._write_cache(cache, splits)
    content, raised = cache.read_bytes(), set()
    for position in range(len(content)):
        cache.write_bytes(flip(position / (len(content) - 1))(content))
        try:
            loaded = tfds_source._read_cache(cache)
        except Exception as error:
            raised.add(repr(error))
        else:
            assert loaded is None or loaded.fingerprint() == splits.fingerprint()
    assert raised == set()


def test_a_cache_of_other_arrays_is_not_believed(prepared: Path, small: Splits) -> None:
    cache = version_folder(prepared) / "cvae_jax.npz"
    with np.load(cache) as arrays:
        changed = dict(arrays)
    changed["train_label"] = changed["train_label"][::-1]
    np.savez(cache, **changed)
    assert tfds_source.load("mnist", prepared).fingerprint() == small.fingerprint()


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    prepared: Path,
    small: Splits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @contextlib.contextmanager
    def read_only(path: Path) -> Iterator[BinaryIO]:
        raise UserError(f"{path} can't be written: Read-only file system")
        yield

    monkeypatch.setattr(tfds_source, "whole_file", read_only)
    cache = version_folder(prepared) / "cvae_jax.npz"
    cache.unlink()
    assert tfds_source.load("mnist", prepared).fingerprint() == small.fingerprint()
    assert [(r.levelno, str(cache) in r.message) for r in caplog.records] == [
        (logging.WARNING, True)
    ]
    assert not cache.exists()


# What is found in the data directory.


def write_info(folder: Path, content: str = '{"fileFormat": "array_record"}') -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(content)
    return folder


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    for version in ("3.0.1", "3.0.10", "3.0.9", "2.9.99"):
        write_info(tmp_path / "mnist" / version)
    write_info(tmp_path / "mnist" / "4.0.0", '{"fileFormat": "tfrecord"}')
    assert version_folder(tmp_path).name == "3.0.10"


@pytest.mark.parametrize(
    "name", ["incomplete.1A2B3C_3.0.1", "3.0.1.old", "3.0.1-old", "3.0.1 (copy)", "notes"]
)
def test_folders_that_are_no_version_are_passed_over(name: str, tmp_path: Path) -> None:
    write_info(tmp_path / "mnist" / name)
    assert tfds_source.find_prepared("mnist", tmp_path) is None
    expected = write_info(tmp_path / "mnist" / "3.0.1")
    assert tfds_source.find_prepared("mnist", tmp_path) == expected


@pytest.mark.parametrize(
    "content",
    ["", "not JSON", "[]", "null", '{"fileFormat": ', "[" * 100_000, "\udcff"],
    ids=lambda content: ascii(content[:15]),
)
def test_a_damaged_description_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    folder = write_info(tmp_path / "mnist" / "3.0.1")
    path = folder / "dataset_info.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"{path} can't be read.*delete its folder"):
        tfds_source.load("mnist", tmp_path)


@pytest.fixture
def tfrecords(prepared: Path) -> Path:
    """Give a data directory whose description says what TFDS with TensorFlow writes there."""
    folder = version_folder(prepared)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    (folder / "cvae_jax.npz").unlink()
    return prepared


def test_tfrecords_are_left_alone_and_the_way_out_is_told(tfrecords: Path) -> None:
    folder = tfrecords / "mnist" / "3.0.1"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=f"{folder} .*TensorFlow.*another --data-dir"):
        data.load_dataset("mnist", source="tfds", data_dir=tfrecords)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_auto_takes_the_bundled_mnist_rather_than_tfrecords(mnist: Splits, tfrecords: Path) -> None:
    loaded = data.load_dataset("mnist", source="auto", data_dir=tfrecords)
    assert loaded.fingerprint() == mnist.fingerprint()


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord", "unheard of"])
def test_a_description_that_says_nothing_else_is_an_error_that_names_the_folder(
    file_format: str, tmp_path: Path
) -> None:
    info = json.dumps({"fileFormat": file_format})
    folder = write_info(tmp_path / "mnist" / "3.0.1", info)
    with pytest.raises(DataError, match=str(folder.parent)):
        tfds_source.load("mnist", tmp_path)


@pytest.mark.parametrize("place", [0.05, 0.1, 0.2])
def test_a_damaged_record_is_an_error_that_names_the_folder(place: float, prepared: Path) -> None:
    folder = version_folder(prepared)
    (folder / "cvae_jax.npz").unlink()
    [records] = folder.glob("*-train.array_record-*")
    records.write_bytes(flip(place)(records.read_bytes()))
    with pytest.raises(DataError, match=f"{folder} can't be read.*delete that folder"):
        tfds_source.load("mnist", prepared)


@pytest.mark.parametrize("name", ["mnist-test.array_record-00000-of-00001", "features.json"])
def test_a_missing_part_is_an_error_that_names_the_folder(name: str, prepared: Path) -> None:
    folder = version_folder(prepared)
    (folder / "cvae_jax.npz").unlink()
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{folder} can't be read.*delete that folder"):
        tfds_source.load("mnist", prepared)


# Files put there by hand. The real download manager runs; nothing may ask the network.


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse to look up any host; give the list of those that were asked for."""
    hosts: list[str] = []

    def refuse(host: str, *arguments: object, **options: object) -> list[Any]:
        hosts.append(host)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return hosts


@pytest.mark.parametrize("folder", ["", "mnist"])
def test_files_put_there_by_hand_must_have_the_known_digests(
    folder: str, small: Splits, tmp_path: Path, looked_up: list[str]
) -> None:
    manual = tmp_path / "downloads" / "manual" / folder
    manual.mkdir(parents=True)
    write_gz(manual, small)
    with pytest.raises(DataError, match=f"{manual}/[^,]*.gz, has wrong checksum"):
        tfds_source.load("mnist", tmp_path)
    assert looked_up == []
    assert tfds_source.find_prepared("mnist", tmp_path) is None


@pytest.mark.parametrize(
    ("dataset", "builder", "folder"),
    [("mnist", "MNIST", ""), ("mnist", "MNIST", "mnist"), ("kmnist", "KMNIST", "kmnist")],
)
def test_files_put_there_by_hand_are_used_where_their_digests_are_known(
    dataset: str,
    builder: str,
    folder: str,
    small: Splits,
    tmp_path: Path,
    looked_up: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    original = getattr(tfds_mnist, builder)
    manual = tmp_path / "downloads" / "manual" / folder
    manual.mkdir(parents=True)
    write_gz(manual, small)
    known = {original.URL + name: checksums.compute_url_info(manual / name) for name in FILES}
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(known))
    monkeypatch.setattr(original, "url_infos", known)
    assert tfds_source.load(dataset, tmp_path).fingerprint() == small.fingerprint()
    assert looked_up == []


@pytest.mark.parametrize("number", [0, 3])
def test_too_few_files_put_there_by_hand_need_the_network(
    number: int, small: Splits, tmp_path: Path, looked_up: list[str]
) -> None:
    manual = tmp_path / "downloads" / "manual" / "mnist"
    manual.mkdir(parents=True)
    write_gz(manual, small)
    for name in FILES[number:]:
        (manual / name).unlink()
    with pytest.raises(DataError, match=f"can't be reached .*put .* into {manual}"):
        tfds_source.load("mnist", tmp_path)
    assert looked_up == ["storage.googleapis.com"]


# No network.


class Silent(socketserver.BaseRequestHandler):
    """Take a request and never answer; hang up after a while, lest a broken test hangs."""

    def handle(self) -> None:
        self.request.settimeout(5)
        with contextlib.suppress(OSError):
            while self.request.recv(1024):
                pass


class Refusing(QuietHandler):
    def do_HEAD(self) -> None:
        self.send_error(503)


class Dripping(socketserver.BaseRequestHandler):
    """Answer a byte at a time, so that no single read times out; end after a while."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            for _ in range(250):
                if cast(Server, self.server).closing:
                    break
                self.request.sendall(b"x")
                time.sleep(0.02)


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        pytest.param(closed_port, "ConnectionError", id="refused"),
        pytest.param(lambda: serve(Silent), "ReadTimeout", id="no answer"),
        pytest.param(lambda: serve(Dripping), "no answer in 0.4 seconds", id="no end"),
        pytest.param(lambda: serve(Refusing), "HTTPError", id="refused by the server"),
    ],
)
def test_without_a_network_the_way_out_is_told_once_the_probe_gives_up(
    network: Callable[[], contextlib.AbstractContextManager[str]],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The servers hang up after seconds, which would be another problem than the one expected.
    monkeypatch.setattr(tfds_source, "_PROBE_SECONDS", 0.2)
    with network() as url, download_from(url), pytest.raises(DataError) as caught:
        tfds_source.load("mnist", tmp_path)
    said = str(caught.value)
    assert f"{url}mnist/ can't be reached ({problem})" in said
    assert all(name in said for name in FILES)
    assert str(tmp_path / "downloads" / "manual" / "mnist") in said
    assert not (tmp_path / "mnist").exists()
