import contextlib
import functools
import gzip
import http.server
import io
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvae_jax import data, tfds_source
from cvae_jax.options import Source
from cvae_jax.types import DataError, Dataset, Splits, UserError
from tests.test_idx import mutations, outcome

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
    allow_reuse_address = True
    closing = False


@contextlib.contextmanager
def serve(handler: Callable[..., socketserver.BaseRequestHandler], port: int = 0) -> Iterator[str]:
    """Answer at an address of this machine, by threads; give the address as a URL."""
    with Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.closing = True
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def download_from(url: str, home: Path | None = None) -> Iterator[None]:
    """Let TFDS's builders name folders below another address, each its own.

    The digests are those of the files in `home`; where it has none, those of the real files.
    """
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    builders = {name: getattr(tfds_mnist, builder) for name, builder in tfds_source.NAMES.items()}
    known = {
        name: {file: b.url_infos[b.URL + file] for file in FILES} for name, b in builders.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, builder in builders.items():
            if home and (home / name).is_dir():
                known[name] = {f: checksums.compute_url_info(home / name / f) for f in FILES}
            patch.setattr(builder, "URL", f"{url}{name}/")
            infos = {f"{url}{name}/{file}": info for file, info in known[name].items()}
            patch.setattr(builder, "url_infos", infos)
        yield


def serve_again(
    url: str, handler: Callable[..., socketserver.BaseRequestHandler]
) -> contextlib.AbstractContextManager[str]:
    """Answer where one has answered before."""
    return serve(handler, port=int(url.rpartition(":")[2].strip("/")))


def make_home(name: str, splits: Splits, folder: Path) -> Path:
    """Make a folder that stands in for the home of data sets in the network."""
    (folder / "home" / name).mkdir(parents=True, exist_ok=True)
    write_gz(folder / "home" / name, splits)
    return folder / "home"


def serve_folder(home: Path) -> contextlib.AbstractContextManager[str]:
    return serve(functools.partial(QuietHandler, directory=home))


def load(name: str, data_dir: Path) -> Splits:
    return data.load_dataset(name, source="tfds", data_dir=data_dir)


def prepare(name: str, splits: Splits, folder: Path) -> Splits:
    home = make_home(name, splits, folder)
    with serve_folder(home) as url, download_from(url, home):
        return load(name, folder / "data")


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
    train, test = (Dataset(d.image[:9000], d.label[:9000]) for d in (mnist.train, mnist.test))
    loaded = prepare("mnist", Splits(train, test, 10), tmp_path)
    for dataset, original in ((loaded.train, train), (loaded.test, test)):
        np.testing.assert_array_equal(dataset.image, original.image, strict=True)
        np.testing.assert_array_equal(dataset.label, original.label, strict=True)


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
from cvae_jax import data

data_dir, url, home = sys.argv[1:]
if url:
    from tensorflow_datasets.core.download.checksums import compute_url_info
    from tensorflow_datasets.image_classification import mnist
    mnist.KMNIST.URL = url + "kmnist/"
    files = Path(home, "kmnist").iterdir()
    mnist.KMNIST.url_infos = {url + "kmnist/" + f.name: compute_url_info(f) for f in files}
splits = data.load_dataset("kmnist", source="tfds", data_dir=Path(data_dir))
modules = [name for name in ("tensorflow", "tensorflow_datasets") if name in sys.modules]
print(json.dumps([splits.fingerprint(), modules]))
"""


def start_in_a_fresh_process(data_dir: Path, url: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOAD_IN_A_FRESH_PROCESS, str(data_dir), url, str(home)],
        cwd=Path(data.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def load_in_a_fresh_process(data_dir: Path, url: str, home: Path) -> list[Any]:
    with start_in_a_fresh_process(data_dir, url, home) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    return list(json.loads(output.splitlines()[-1]))


def test_tensorflow_is_never_imported_and_tfds_only_the_first_time(
    small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = make_home("kmnist", small, tmp_path)
    with serve_folder(home) as url:
        first = load_in_a_fresh_process(tmp_path / "data", url, home)
    second = load_in_a_fresh_process(tmp_path / "data", "", home)
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
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
    assert [str(cache) in m and "damaged" in m for m in caplog.messages] == [True]

    caplog.clear()
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
    assert caplog.messages == []


def test_no_flipped_byte_of_the_cache_goes_unnoticed_or_ends_in_a_traceback(
    small: Splits, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.npz"
    one = Dataset(small.test.image[:1, :4, :4], small.test.label[:1])
    splits = Splits(one, one, 10)
    data._write_cache(cache, splits)
    content, raised = cache.read_bytes(), set()
    for position in range(len(content)):
        cache.write_bytes(flip(position / (len(content) - 1))(content))
        try:
            loaded = data._read_cache(cache)
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
    assert load("mnist", prepared).fingerprint() == small.fingerprint()


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", ["train_image", "num_classes", "fingerprint", "whole"])
def test_nothing_in_a_cache_is_unpickled(
    part: str, prepared: Path, small: Splits, tmp_path: Path
) -> None:
    cache = version_folder(prepared) / "cvae_jax.npz"
    bomb = Bomb(tmp_path / "gone off")
    with np.load(cache) as arrays:
        changed = dict(arrays)
    if part == "whole":
        cache.write_bytes(pickle.dumps(bomb))
    else:
        np.savez(cache, **changed | {part: np.array([bomb], object)})
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
    assert not bomb.path.exists()


def test_a_cache_that_unpacks_to_more_than_it_holds_is_not_unpacked(
    prepared: Path, small: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    cache = version_folder(prepared) / "cvae_jax.npz"
    with np.load(cache) as arrays:
        np.savez_compressed(cache, **dict(arrays))
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
    assert "compressed" in caplog.text


def bad(splits: Splits, **changes: Any) -> Splits:
    return splits._replace(train=splits.train._replace(**changes))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            lambda s: s._replace(num_classes=7), "outside the classes, 0 to 6", id="classes"
        ),
        pytest.param(lambda s: bad(s, label=s.train.label - 1), "from -1 to 8", id="negative"),
        pytest.param(lambda s: bad(s, label=s.train.label[1:]), "one for one", id="too few"),
        pytest.param(lambda s: bad(s, label=s.train.label.astype(np.int64)), "int32", id="int64"),
        pytest.param(lambda s: bad(s, image=s.train.image / 255), "uint8", id="floats"),
        pytest.param(lambda s: bad(s, image=s.train.image[..., 0]), "shape", id="three axes"),
        pytest.param(lambda s: bad(s, image=s.train.image[:, 1:]), "shape", id="two sizes"),
        pytest.param(lambda s: bad(s, image=s.train.image[:, :0]), "shape", id="no pixels"),
    ],
)
def test_a_cache_that_is_whole_but_no_data_set_is_made_anew(
    change: Callable[[Splits], Splits],
    problem: str,
    prepared: Path,
    small: Splits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = version_folder(prepared) / "cvae_jax.npz"
    data._write_cache(cache, change(small))
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
    [said] = caplog.messages
    assert f"{cache} is damaged" in said
    assert problem in said


def rewrite_features(data_dir: Path, old: str, new: str) -> Path:
    folder = version_folder(data_dir)
    (folder / "cvae_jax.npz").unlink()
    features = folder / "features.json"
    assert old in features.read_text()
    features.write_text(features.read_text().replace(old, new))
    return folder


def test_prepared_labels_outside_the_classes_are_an_error_that_names_the_folder(
    prepared: Path,
) -> None:
    folder = rewrite_features(prepared, '"numClasses": "10"', '"numClasses": "7"')
    with pytest.raises(DataError, match=f"{folder} .* labels run from 0 to 9.* 0 to 6"):
        load("mnist", prepared)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_description_never_makes_tfds_import_a_foreign_module(
    key: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text("import sys; sys.hostile_ran = True")
    monkeypatch.syspath_prepend(tmp_path)
    name = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
    folder = rewrite_features(prepared, f'"pythonClassName": "{name}"', f'"{key}": "hostile.Label"')
    with pytest.raises(DataError, match=f"{folder} can't be read .*foreign class 'hostile.Label'"):
        load("mnist", prepared)
    assert not hasattr(sys, "hostile_ran")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that all the examples of a test share."""
    return tmp_path_factory.mktemp("scratch")


@contextlib.contextmanager
def nothing_logged() -> Iterator[None]:
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


ONE = Dataset(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), np.zeros(1, np.int32))
FINGERPRINT = Splits(ONE, ONE, 10).fingerprint()


def cache_bytes() -> bytes:
    packed = io.BytesIO()
    arrays = {
        f"{split}_{part}": array
        for split, dataset in (("train", ONE), ("test", ONE))
        for part, array in dataset._asdict().items()
    }
    np.savez(packed, **arrays, num_classes=10, fingerprint=FINGERPRINT)
    return packed.getvalue()


CACHE = cache_bytes()


@pytest.mark.fuzz
@given(content=st.binary(max_size=64) | mutations([CACHE]))
@example(content=CACHE)
def test_any_cache_is_the_data_set_or_made_anew(content: bytes, scratch: Path) -> None:
    cache = scratch / "cache.npz"
    cache.write_bytes(content)
    with nothing_logged():
        loaded = data._read_cache(cache)
    assert loaded.fingerprint() == FINGERPRINT if loaded else content != CACHE


INFO = b'{"fileFormat": "array_record", "name": "mnist", "splits": [{"shardLengths": ["30"]}]}'


@pytest.mark.fuzz
@given(content=st.binary(max_size=64) | mutations([INFO]))
def test_any_description_names_a_format_or_is_an_error_that_names_it(
    content: bytes, scratch: Path
) -> None:
    path = scratch / "dataset_info.json"
    path.write_bytes(content)
    found = outcome(lambda: tfds_source._file_format(path))
    if isinstance(found, DataError):
        assert str(found).startswith(f"{path} can't be read: ")
        assert "\n" not in str(found)
    else:
        assert content != INFO or found == "array_record"


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    prepared: Path,
    small: Splits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read_only(path: Path, **_: np.ndarray) -> None:
        raise UserError(f"{path} can't be written: Read-only file system")

    monkeypatch.setattr(data, "write_arrays", read_only)
    cache = version_folder(prepared) / "cvae_jax.npz"
    cache.unlink()
    assert load("mnist", prepared).fingerprint() == small.fingerprint()
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
        load("mnist", tmp_path)


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
        load("mnist", tmp_path)


@pytest.mark.parametrize("place", [0.05, 0.1, 0.2])
def test_a_damaged_record_is_an_error_that_names_the_folder(place: float, prepared: Path) -> None:
    folder = version_folder(prepared)
    (folder / "cvae_jax.npz").unlink()
    [records] = folder.glob("*-train.array_record-*")
    records.write_bytes(flip(place)(records.read_bytes()))
    with pytest.raises(DataError, match=f"{folder} can't be read.*delete that folder"):
        load("mnist", prepared)


@pytest.mark.parametrize("name", ["mnist-test.array_record-00000-of-00001", "features.json"])
def test_a_missing_part_is_an_error_that_names_the_folder(name: str, prepared: Path) -> None:
    folder = version_folder(prepared)
    (folder / "cvae_jax.npz").unlink()
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{folder} can't be read.*delete that folder"):
        load("mnist", prepared)


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
    with pytest.raises(DataError, match=f"{manual}/{FILES[0]} is damaged or another file"):
        load("mnist", tmp_path)
    assert looked_up == []
    assert tfds_source.find_prepared("mnist", tmp_path) is None


@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", ""), ("mnist", "mnist"), ("kmnist", "kmnist")]
)
def test_files_put_there_by_hand_are_used_where_their_digests_are_known(
    dataset: str, folder: str, small: Splits, tmp_path: Path, looked_up: list[str]
) -> None:
    manual = tmp_path / "downloads" / "manual" / folder
    manual.mkdir(parents=True)
    write_gz(manual, small)
    with download_from("http://nowhere.invalid/", make_home(dataset, small, tmp_path)):
        assert load(dataset, tmp_path).fingerprint() == small.fingerprint()
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
    nowhere = "http://nowhere.invalid/"
    with (
        download_from(nowhere, make_home("mnist", small, tmp_path)),
        pytest.raises(DataError, match=f"{FILES[number]} can't be down.*put .* into {manual}"),
    ):
        load("mnist", tmp_path)
    assert looked_up == ["nowhere.invalid"]


# Downloads that were finished are used.


def cut_off(url: str) -> str:
    """Check that nobody answers at an address any more."""
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", int(url.rpartition(":")[2].strip("/"))))
    return url


def test_with_all_files_downloaded_no_network_is_needed(small: Splits, tmp_path: Path) -> None:
    home = make_home("mnist", small, tmp_path)
    with serve_folder(home) as url, download_from(url, home):
        load("mnist", tmp_path)
    shutil.rmtree(tmp_path / "mnist")
    with download_from(cut_off(url), home):
        assert load("mnist", tmp_path).fingerprint() == small.fingerprint()


def test_what_tfds_itself_has_downloaded_is_used(small: Splits, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.mnist import MNIST

    home = make_home("mnist", small, tmp_path)
    with serve_folder(home) as url, download_from(url, home):
        tfds.download.DownloadManager(
            download_dir=tmp_path / "downloads", url_infos=MNIST.url_infos, dataset_name="mnist"
        ).download([MNIST.URL + file for file in FILES])
    with download_from(cut_off(url), home):
        assert load("mnist", tmp_path).fingerprint() == small.fingerprint()


@pytest.mark.parametrize("damage", [flip(0.5), lambda content: content[:9], lambda content: b""])
def test_a_damaged_download_is_downloaded_anew(
    damage: Callable[[bytes], bytes], small: Splits, tmp_path: Path
) -> None:
    home = make_home("mnist", small, tmp_path)
    with serve_folder(home) as url, download_from(url, home):
        load("mnist", tmp_path)
        shutil.rmtree(tmp_path / "mnist")
        for path in (tmp_path / "downloads" / "mnist").iterdir():
            path.write_bytes(damage(path.read_bytes()))
        assert load("mnist", tmp_path).fingerprint() == small.fingerprint()


# The network fails.


class Faulty(QuietHandler):
    """Serve all files but the third, which meets a fault; count what was asked for."""

    fault: Callable[["Faulty", bytes], None]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path.rpartition("/")[2])
        if self.path.endswith(FILES[2]):
            self.close_connection = True
            with contextlib.suppress(OSError):  # the other side may have had enough
                type(self).fault(self, Path(self.translate_path(self.path)).read_bytes())
        else:
            super().do_GET()

    def answer(self, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def stay(self) -> None:
        """Say no more; hang up after a while, lest a broken test hangs."""
        self.connection.settimeout(5)
        self.connection.recv(1)


def refuse(handler: Faulty, content: bytes) -> None:
    handler.send_error(503)


def stay_silent(handler: Faulty, content: bytes) -> None:
    handler.stay()


def stall(handler: Faulty, content: bytes) -> None:
    handler.answer(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.stay()


def hang_up(handler: Faulty, content: bytes) -> None:
    handler.answer(len(content))
    handler.wfile.write(content[: len(content) // 2])


def hang_up_unnoticed(handler: Faulty, content: bytes) -> None:
    handler.answer(None)
    handler.wfile.write(content[: len(content) // 2])


def drip(handler: Faulty, start: bytes) -> None:
    """Send a byte at a time, so that no single read times out; end after a while."""
    handler.wfile.write(start)
    for _ in range(250):
        if cast(Server, handler.server).closing:
            break
        handler.wfile.write(b"x")
        time.sleep(0.02)


def drip_a_header(handler: Faulty, content: bytes) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Endless: ")


def drip_the_body(handler: Faulty, content: bytes) -> None:
    handler.answer(len(content))
    drip(handler, b"")


def send_a_flipped_byte(handler: Faulty, content: bytes) -> None:
    handler.answer(len(content))
    handler.wfile.write(flip(0.5)(content))


def send_a_login_page(handler: Faulty, content: bytes) -> None:
    handler.answer(None)
    handler.wfile.write(b"<html>Please log in</html>")


def send_without_end(handler: Faulty, content: bytes) -> None:
    handler.answer(None)
    while not cast(Server, handler.server).closing:
        handler.wfile.write(bytes(1 << 16))


FAULTS: dict[Callable[[Faulty, bytes], None], str] = {
    refuse: "HTTPError",
    stay_silent: "ReadTimeout",
    stall: "ConnectionError",
    hang_up: "ChunkedEncodingError",
    hang_up_unnoticed: "another SHA-256",
    drip_a_header: "nothing came for 0.4 seconds",
    drip_the_body: "nothing came for 0.4 seconds",
    send_a_flipped_byte: "another SHA-256",
    send_a_login_page: "another SHA-256",
    send_without_end: "another SHA-256",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_network_ends_in_one_error_and_the_next_run_goes_on(
    fault: Callable[[Faulty, bytes], None],
    small: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tfds_source, "_WAIT_SECONDS", 0.2)
    home = make_home("mnist", small, tmp_path)
    asked: list[str] = []
    handler = type("Handler", (Faulty,), {"fault": staticmethod(fault), "asked": asked})
    start = time.monotonic()
    with (
        serve(functools.partial(handler, directory=home)) as url,
        download_from(url, home),
        pytest.raises(DataError) as caught,
    ):
        load("mnist", tmp_path)
    assert time.monotonic() - start < 4  # before any of the servers above gives up
    said = str(caught.value)
    assert f"{url}mnist/{FILES[2]} can't be downloaded" in said
    assert FAULTS[fault] in said
    assert "\n" not in said
    assert all(name in said for name in FILES)
    assert str(tmp_path / "downloads" / "manual" / "mnist") in said
    assert asked == list(FILES[:3])
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "mnist").exists()

    mended = type("Mended", (Faulty,), {"fault": staticmethod(send), "asked": asked})
    with serve_again(url, functools.partial(mended, directory=home)), download_from(url, home):
        assert load("mnist", tmp_path).fingerprint() == small.fingerprint()
    assert asked == [*FILES[:3], *FILES[2:]]


def send(handler: Faulty, content: bytes) -> None:
    handler.answer(len(content))
    handler.wfile.write(content)


@pytest.mark.parametrize("source", ["auto", "tfds"])
def test_without_a_network_the_way_out_is_told(source: Source, tmp_path: Path) -> None:
    with serve_folder(tmp_path) as url:
        pass
    with download_from(cut_off(url)), pytest.raises(DataError) as caught:
        data.load_dataset("kmnist", source=source, data_dir=tmp_path)
    said = str(caught.value)
    assert f"{url}kmnist/{FILES[0]} can't be downloaded (ConnectionError" in said
    assert f"into {tmp_path / 'downloads' / 'manual' / 'kmnist'}" in said
    assert not (tmp_path / "kmnist").exists()


def test_a_host_that_is_looked_up_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = threading.Event()

    def look_up(*arguments: object, **options: object) -> list[Any]:
        found.wait(5)
        raise socket.gaierror("found nothing")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(tfds_source, "_WAIT_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"nothing came for 0.4 seconds"):
        load("mnist", tmp_path)
    assert not found.is_set()
    found.set()


# Killed in the middle.


def test_a_run_that_is_killed_while_it_downloads_does_not_spoil_the_next(
    small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home, data_dir = make_home("kmnist", small, tmp_path), tmp_path / "data"
    reached = threading.Event()

    def stall_and_tell(handler: Faulty, content: bytes) -> None:
        handler.answer(len(content))
        handler.wfile.write(content[: len(content) // 2])
        reached.set()
        handler.stay()

    handler = type("Handler", (Faulty,), {"fault": staticmethod(stall_and_tell), "asked": []})
    with serve(functools.partial(handler, directory=home)) as url:
        with start_in_a_fresh_process(data_dir, url, home) as process:
            assert reached.wait(30)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with (
        serve_again(url, functools.partial(QuietHandler, directory=home)),
        download_from(url, home),
    ):
        assert load("kmnist", data_dir).fingerprint() == small.fingerprint()


def test_a_run_that_is_killed_while_it_prepares_does_not_spoil_the_next(
    mnist: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    train, test = (Dataset(d.image[:3000], d.label[:3000]) for d in (mnist.train, mnist.test))
    splits = Splits(train, test, 10)
    home, data_dir = make_home("kmnist", splits, tmp_path), tmp_path / "data"
    with (
        serve_folder(home) as url,
        start_in_a_fresh_process(data_dir, url, home) as process,
    ):
        while process.poll() is None and not list(data_dir.glob("kmnist/incomplete.*/*")):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(data_dir.glob("kmnist/incomplete.*"))
    assert tfds_source.find_prepared("kmnist", data_dir) is None
    with download_from(cut_off(url), home):
        assert load("kmnist", data_dir).fingerprint() == splits.fingerprint()
