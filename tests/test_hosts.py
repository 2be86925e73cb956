"""Several processes that train one model, started, stopped, killed and resumed for real."""

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
import pytest

from cvae_jax.errors import ConfigError, HostError, UserError
from cvae_jax.runtime import hosts
from cvae_jax.storage import checkpoints, workdir
from tests import fault_files, faults

EPOCHS = 5
LONGEST_ALONE = 40
"""Seconds in which a process ends after another one is gone."""

# A lost process is noticed by its silence; here that takes six seconds instead of a minute.
TRAIN = """
from cvae_jax.commands.cli import main
from cvae_jax.runtime import hosts

hosts._HEARTBEAT_SECONDS = 6
main("train")
"""


def free_address() -> str:
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


class Together:
    """Two processes of two devices each that train together."""

    def __init__(self, folder: Path, *, of_second: tuple[object, ...] = ()) -> None:
        script = folder.with_suffix(".py")
        script.write_text(TRAIN)
        shared = (*faults.small_run(), "--batch-size", 80, "--epochs", EPOCHS)
        shared += ("--checkpoint-every", 1, "--workdir", folder)
        shared += ("--coordinator-address", free_address(), "--num-processes", 2)
        self.directory = folder / workdir.CHECKPOINTS
        self.processes = [
            faults.Started(
                script,
                *(*shared, "--process-id", index, *(of_second if index else ())),
                environ={"JAX_NUM_CPU_DEVICES": "2"},
            )
            for index in range(2)
        ]

    def wait_for_checkpoint(self) -> None:
        """Wait until there is another one than at the start."""
        steps = checkpoints.list_steps(self.directory)
        first = self.processes[0]
        found = first.wait_until(lambda: checkpoints.list_steps(self.directory) != steps)
        assert found, self.outputs

    def end(self) -> list[int]:
        return [process.end() for process in self.processes]

    @property
    def outputs(self) -> list[str]:
        return [process.output for process in self.processes]


def test_two_processes_train_are_stopped_killed_and_go_on_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    whole, folder = Together(tmp_path / "whole"), tmp_path / "parts"
    assert whole.end() == [0, 0], whole.outputs
    first, second = whole.outputs
    assert "devices: 4 x cpu (cpu)\n" in first
    assert f"epoch {EPOCHS}/{EPOCHS}: train loss" in first
    assert "epoch" not in second

    stopped = Together(folder)
    stopped.wait_for_checkpoint()
    stopped.processes[1].process.terminate()  # one of the two alone
    assert stopped.end() == [128 + signal.SIGTERM] * 2, stopped.outputs
    saved = [process.saved_at for process in stopped.processes]
    assert saved[0] == saved[1] != ""

    for lost in (0, 1):
        killed = Together(folder)
        killed.wait_for_checkpoint()
        began = time.monotonic()
        killed.processes[lost].kill()
        statuses = killed.end()
        assert statuses[lost] == -signal.SIGKILL
        assert statuses[1 - lost] != 0
        output = killed.outputs[1 - lost]
        assert "another task died" in output or "another one is gone" in output, output
        assert time.monotonic() - began < LONGEST_ALONE

    resumed = Together(folder)
    assert resumed.end() == [0, 0], resumed.outputs
    assert "resuming after epoch" in resumed.outputs[0]
    assert fault_files.differences(folder, tmp_path / "whole") == []


def test_processes_that_were_started_differently_say_so(tmp_path: Path) -> None:
    together = Together(tmp_path / "run", of_second=("--seed", 3))
    assert together.end() == [2, 2], together.outputs
    for output in together.outputs:
        assert "error: process 1 has other settings, data or workdir than process 0" in output
        assert "Traceback" not in output


def test_an_address_that_is_no_good_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_START_SECONDS", 0.5)
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=rf"{address} can't be used here \(.*in use"),
            hosts.joined(address, 2, 0),
        ):
            pass
    for nobody in (address, "no.such.host.invalid:1234", "a..b:1234"):
        with (
            pytest.raises(ConfigError, match=rf"{nobody} does not answer \(.*a free port"),
            hosts.joined(nobody, 2, 1),
        ):
            pass


WAITING = """
import sys
from cvae_jax.runtime import hosts
with hosts.joined(sys.argv[1], 2, 0):
    pass
"""


def test_control_c_ends_a_process_that_waits_for_the_others() -> None:
    command = [sys.executable, "-c", WAITING, free_address()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("waiting for all processes")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == -signal.SIGINT
        finally:
            process.kill()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every scheduler and cloud that this machine may be part of."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TPU_", "GCE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # JAX sets it where there is no TPU


def set_slurm(monkeypatch: pytest.MonkeyPatch, num_tasks: str) -> None:
    monkeypatch.setenv("SLURM_NTASKS", num_tasks)
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; try a smaller --batch-size"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no"), "out of memory; try a smaller"),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo"), r"another one is gone \(UNKNOWN: Gloo\)"),
        (UserError("the disk is full"), "the disk is full"),
        (KeyError("name"), "a bug in cvae_jax: 'name'"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_a_process_that_fails_does_not_wait_for_the_others(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_slurm(monkeypatch, "2")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    with pytest.raises(HostError, match=told), hosts.joined(None, None, None):
        raise error


def test_one_process_alone_agrees_with_itself() -> None:
    assert hosts.is_first()
    assert hosts.from_first(7) == 7
    assert hosts.least(7.0) == 7
    assert hosts.least(None) is None
    hosts.require_equal(b"anything", "settings")
    with hosts.first_alone(), hosts.joined(None, None, None):
        pass


# How a process learns that it is one of several.


@pytest.mark.usefixtures("nowhere")
def test_slurm_is_asked_where_it_started_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not hosts.in_cluster()  # a batch script that does not use srun
    set_slurm(monkeypatch, "4")
    assert hosts.in_cluster()
    set_slurm(monkeypatch, "1")
    assert not hosts.in_cluster()


@pytest.mark.usefixtures("nowhere")
def test_a_pod_under_kubernetes_is_known_by_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for names, expected in (("", False), ("localhost", False), ("host-0,host-1", True)):
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
        assert hosts.in_cluster() is expected


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], str]]:
    """Return a function that starts a metadata server with these hosts; it returns its address."""
    servers = []

    def start(content: bytes | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.path.endswith("/worker-network-endpoints")
                if content is None or not asked or self.headers["Metadata-Flavor"] != "Google":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

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
def test_a_pod_of_virtual_machines_is_known_by_its_metadata(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[bytes | None], str]
) -> None:
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    one, two = b"a:0:10.0.0.1", b"a:0:10.0.0.1,b:1:10.0.0.2"
    for content, expected in ((None, False), (b"", False), (one, False), (two, True)):
        monkeypatch.setenv("GCE_METADATA_IP", serve(content))
        assert hosts.in_cluster() is expected
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")  # nobody answers
    assert not hosts.in_cluster()
