"""Several processes that train one model: how they find each other, agree, and part."""

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from cvae_jax.types import ConfigError, InterruptedRunError, PartedError, UserError

_START_SECONDS = 300
_HEARTBEAT_SECONDS = 60  # after which a silent process counts as lost
_METADATA_SECONDS = 2
# What all processes find wrong at the same time, all have to say before the first one, on which
# JAX has the others depend, is gone.
_LINGER_SECONDS = 1


@contextlib.contextmanager
def joined(address: str | None, number: int | None, index: int | None) -> Iterator[None]:
    """Join the processes that train together, by JAX's own runtime; nothing where there is one.

    From then on only the first process prints. To be entered before JAX looks for its devices. A
    process that fails is left at once, without the farewell that the others are too busy for.

    Args:
        address: host:port of the first process; None to ask the cluster, where this is one.
        number: of processes.
        index: of this one.

    Raises:
        ConfigError: the first process can't be reached, or its port can't be used.
        PartedError: this process failed, or another one is gone.
    """
    if address is None and not in_cluster():
        yield
        return
    print(f"waiting for all processes, {_START_SECONDS} seconds at most", flush=True)
    if address is not None:
        _require_reachable(address, is_here=index == 0)
    try:
        with _signals_end_it():
            jax.distributed.initialize(
                address,
                number,
                index,
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes can't be joined: {_first_line(error)}; check --coordinator-address, "
            "--num-processes and --process-id of each"
        ) from error
    with contextlib.ExitStack() as stack:
        if not is_first():
            quiet = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        try:
            try:
                yield
            except InterruptedRunError:  # they all were
                jax.distributed.shutdown()
                raise
            jax.distributed.shutdown()
        except InterruptedRunError:
            raise
        except UserError as error:
            if is_first():
                time.sleep(_LINGER_SECONDS)
            raise PartedError(str(error), error.exit_status) from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            raise PartedError(_explain(error)) from error
        except Exception as error:
            traceback.print_exc()
            raise PartedError(f"this is a mistake in cvae_jax: {_first_line(error)}") from error


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process where it waits in C, and has nothing to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: old for n in numbers if (old := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:  # but SIGTERM is JAX's from here on: its preemption service has taken it
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])


def in_cluster() -> bool:
    """Tell whether a scheduler started several processes, so that JAX can ask it for the rest."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in os.environ for name in slurm):
        return os.environ.get("SLURM_NTASKS", "1") != "1"
    # A TPU pod under Kubernetes has its hosts in the environment, one of virtual machines in the
    # metadata. Importing JAX has set TPU_SKIP_MDS_QUERY where there is no TPU.
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in os.environ:
        hosts = _ask_metadata()
    return "," in (hosts or "")


def _explain(error: Exception) -> str:
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory; try a smaller --batch-size or --hidden-dim"
    return (
        f"process {jax.process_index()} of {jax.process_count()} can't go on, most likely because "
        f"another one is gone ({_first_line(error)}); start all of them again, the run goes on "
        "from its newest checkpoint"
    )


def _require_reachable(address: str, *, is_here: bool) -> None:
    """Try the address first: where it is no good, JAX ends the process without an exception."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
            if is_here:
                family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
                socket.create_server(
                    ("", int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6
                ).close()
            else:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: of a name that can't be one
            if not is_here and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            problem = "can't be used here" if is_here else "does not answer"
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--coordinator-address {address} {problem} ({why}); give that of the host of "
                "process 0, which the others can reach, with a free port"
            ) from error
        return


def _ask_metadata() -> str:
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    path = "computeMetadata/v1/instance/attributes/worker-network-endpoints"
    request = urllib.request.Request(
        f"http://{server}/{path}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as response:
            return str(response.read(), "utf-8", "replace")
    except OSError:  # no such server: not a virtual machine of that cloud
        return ""


def is_first() -> bool:
    """Tell whether this is the process that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do some work before the others begin it."""
    # On CPUs the first time they wait is when they connect, for which there are 30 seconds only.
    _wait_for_all()
    if not is_first():
        _wait_for_all()
    yield
    if is_first():
        _wait_for_all()


def from_first(number: int) -> int:
    """Give all processes the number that the first one has."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def least(number: float | None) -> float | None:
    """Give all processes the least of their numbers; None is more than any."""
    if jax.process_count() == 1:
        return number
    own = np.float64(np.inf if number is None else number)
    smallest = float(np.min(multihost_utils.process_allgather(own)))
    return None if np.isinf(smallest) else smallest


def require_equal(record: bytes, what: str) -> None:
    """Check that all processes have the same record.

    Raises:
        ConfigError: they don't; the message names the processes that differ from the first one.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(record).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if odd := [index for index, other in enumerate(digests) if (other != digests[0]).any()]:
        raise ConfigError(
            f"process {', '.join(map(str, odd))} has other {what} than process 0; start all with "
            "the same ones"
        )


def _wait_for_all() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cvae_jax")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
