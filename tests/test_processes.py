"""Several processes that train one model, started, stopped, killed and resumed for real."""

import csv
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import optax
import pytest

from benchmarks.contest import free_address
from cvae_jax import checkpoints, processes
from cvae_jax.config import RunConfig
from cvae_jax.models import CVAE
from cvae_jax.training import init_state
from cvae_jax.types import ConfigError, PartedError, Splits, TrainState, UserError
from cvae_jax.workdir import read_config
from tests.conftest import assert_trees_equal, patched_script
from tests.test_idx import write_directory

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
# A lost process is noticed by its silence; here that takes ten seconds in place of a minute.
START = patched_script("processes", _HEARTBEAT_SECONDS=10)
EPOCHS = 12


class Together:
    """Two processes of two devices each that train together, and their output in files."""

    def __init__(self, folder: Path, arguments: list[object], *, of_second: tuple[str, ...] = ()):
        folder.mkdir(exist_ok=True)
        address = free_address()
        self.workdir = folder / "run"
        self.logs = [folder / f"{index}.log" for index in range(2)]
        self.processes = []
        for index, log in enumerate(self.logs):
            command = [
                *(sys.executable, "-c", START, TRAIN, *arguments, "--workdir", self.workdir),
                *("--coordinator-address", address, "--num-processes", 2, "--process-id", index),
                *(of_second if index else ()),
            ]
            with log.open("w") as file:
                process = subprocess.Popen(
                    list(map(str, command)),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
                )
            self.processes.append(process)

    def wait_for_checkpoint(self) -> None:
        """Wait until there is another one than at the start."""
        deadline, steps = time.monotonic() + 120, self.steps()
        while self.steps() == steps:
            assert time.monotonic() < deadline, self.texts()
            assert self.processes[0].poll() is None, self.texts()
            time.sleep(0.02)

    def steps(self) -> list[int]:
        return checkpoints.list_steps(self.workdir / "checkpoints")

    def wait(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.processes]

    def texts(self) -> list[str]:
        return [log.read_text() for log in self.logs]


@pytest.fixture
def arguments(small_splits: Splits, tmp_path: Path) -> list[object]:
    data = tmp_path / "data"
    data.mkdir()
    write_directory(data, small_splits.train, small_splits.test)
    return [
        *("--source", "idx", "--data-dir", data, "--hidden-dim", 32, "--latent-dim", 5),
        *("--epochs", EPOCHS, "--checkpoint-every", 2, "--sample-every", EPOCHS),
    ]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def final_state(folder: Path) -> tuple[TrainState, RunConfig]:
    newest, run = checkpoints.find_newest(folder / "checkpoints"), read_config(folder)
    assert newest is not None
    optimizer = optax.adam(run.train.learning_rate)
    like = jax.eval_shape(lambda: init_state(jax.random.key(0), CVAE(run.model), optimizer))
    return checkpoints.restore(newest, like, run)[0], run


def test_two_processes_train_are_stopped_killed_and_go_on_as_if_nothing_had_been(
    arguments: list[object], tmp_path: Path
) -> None:
    whole = Together(tmp_path / "whole", arguments)
    assert whole.wait() == [0, 0], whole.texts()
    first, second = whole.texts()
    assert "devices: 4 x cpu (cpu)\n" in first
    assert f"epoch {EPOCHS}/{EPOCHS}: train loss" in first
    assert "epoch" not in second
    assert (whole.workdir / "samples" / f"epoch_0{EPOCHS}.png").exists()

    parts = tmp_path / "parts"
    stopped = Together(parts, arguments)
    stopped.wait_for_checkpoint()
    stopped.processes[1].send_signal(signal.SIGTERM)  # to one of the two alone
    assert stopped.wait() == [128 + signal.SIGTERM] * 2, stopped.texts()
    assert all("stopped and saved after epoch" in text for text in stopped.texts())

    for lost in (0, 1):
        killed = Together(parts, arguments)
        killed.wait_for_checkpoint()
        started = time.monotonic()
        killed.processes[lost].kill()
        statuses = killed.wait()
        assert statuses[lost] == -signal.SIGKILL
        assert statuses[1 - lost] != 0
        text = killed.texts()[1 - lost]
        assert "another task died" in text or "another one is gone" in text, text
        assert time.monotonic() - started < 60

    resumed = Together(parts, arguments)
    assert resumed.wait() == [0, 0], resumed.texts()
    assert "going on after epoch" in resumed.texts()[0]
    assert_trees_equal(final_state(resumed.workdir), final_state(whole.workdir))
    assert metrics(resumed.workdir) == metrics(whole.workdir)


def test_processes_that_were_started_differently_say_so(
    arguments: list[object], tmp_path: Path
) -> None:
    together = Together(tmp_path / "run", arguments, of_second=("--seed", "3"))
    assert together.wait() == [2, 2], together.texts()
    for text in together.texts():
        assert "error: process 1 has other settings, data or workdir than process 0" in text
        assert "Traceback" not in text


def test_an_address_that_is_no_good_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_START_SECONDS", 0.5)
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=rf"{address} can't be used here \(.*in use"),
            processes.joined(address, 2, 0),
        ):
            pass
    for nobody in (address, "no.such.host.invalid:1234", "a..b:1234"):
        with (
            pytest.raises(ConfigError, match=rf"{nobody} does not answer \(.*with a free port"),
            processes.joined(nobody, 2, 1),
        ):
            pass
    with (
        pytest.raises(ConfigError, match=r"a\.\.b:1234 can't be used here"),
        processes.joined("a..b:1234", 2, 0),
    ):
        pass


WAITING = """
import sys
from cvae_jax import processes
with processes.joined(sys.argv[1], 2, 0):
    pass
"""


def test_control_c_ends_a_process_that_waits_for_the_others() -> None:
    address = free_address()
    command = [sys.executable, "-c", WAITING, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("waiting for all processes")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == -signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; try a smaller --batch-size"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no"), "out of memory; try a smaller"),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo"), r"another one is gone \(UNKNOWN: Gloo\)"),
        (UserError("the disk is full"), "the disk is full"),
        (KeyError("name"), "a mistake in cvae_jax: 'name'"),
    ],
)
def test_whatever_fails_parts_a_process_from_the_others_at_once(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "in_cluster", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    with pytest.raises(PartedError, match=told), processes.joined(None, None, None):
        raise error


@pytest.mark.parametrize(("index", "order"), [(0, "all work all"), (1, "all all work")])
def test_the_first_process_works_alone_once_all_are_connected(
    index: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(processes, "_wait_for_all", lambda: done.append("all"))
    with processes.first_alone():
        done.append("work")
    assert " ".join(done) == order


def test_one_process_alone_agrees_with_itself() -> None:
    assert processes.is_first()
    assert processes.from_first(7) == 7
    assert processes.least(7.0) == 7
    assert processes.least(None) is None
    processes.require_equal(b"anything", "settings")
    with processes.first_alone(), processes.joined(None, None, None):
        pass


# Who finds the others by themselves.


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "TPU_", "GCE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # JAX sets it where there is no TPU


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("number", "expected"), [("1", False), ("4", True)])
def test_slurm_is_asked_where_it_started_several(
    number: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not processes.in_cluster()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", number)
    assert not processes.in_cluster()  # a batch script that does not use srun
    for name in ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    assert processes.in_cluster() is expected


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("hosts", "expected"), [("", False), ("localhost", False), ("host-0,host-1", True)]
)
def test_a_pod_under_kubernetes_is_known_by_its_hosts(
    hosts: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    assert processes.in_cluster() is expected


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], str]]:
    """Give a function that starts a metadata server with these hosts, and gives its address."""
    servers = []

    def start(hosts: bytes | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.path.endswith("/worker-network-endpoints")
                if hosts is None or not asked or self.headers["Metadata-Flavor"] != "Google":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(hosts)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(None, False), (b"", False), (b"a:0:10.0.0.1", False), (b"a:0:10.0.0.1,b:1:10.0.0.2", True)],
)
def test_a_pod_of_virtual_machines_is_known_by_its_metadata(
    hosts: bytes | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[bytes | None], str],
) -> None:
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setenv("GCE_METADATA_IP", serve(hosts))
    assert processes.in_cluster() is expected


@pytest.mark.usefixtures("nowhere")
def test_a_tpu_that_nobody_knows_more_of_is_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    assert not processes.in_cluster()
