"""Several processes that train one model: how they find each other, agree and end."""

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

from cvae_jax.errors import ConfigError, HostError, InterruptedRunError, UserError
from cvae_jax.runtime import signals
from cvae_jax.runtime.files import reason

_START_SECONDS = 300
_HEARTBEAT_SECONDS = 60  # after which a silent process counts as lost
# JAX ends the others when process 0 ends: let them report a shared error first.
_LINGER_SECONDS = 1


@contextlib.contextmanager
def joined(address: str | None, number: int | None, index: int | None) -> Iterator[None]:
    """Join the processes that train together by JAX's own runtime; do nothing for a single one.

    Enter it before JAX looks for its devices. From then on only the first process prints. A process
    that fails ends without waiting for the others.

    Args:
        address: host:port of the first process; None to ask the cluster, where this is one.
        number: the number of processes.
        index: the index of this one, from 0.

    Raises:
        ConfigError: the first process can't be reached, or its port can't be used.
        HostError: this process failed, or another one is gone.
    """
    if address is None and not in_cluster():
        yield
        return
    print(f"waiting for all processes, {_START_SECONDS} seconds at most", flush=True)
    if address is not None:
        _require_reachable(address, is_here=index == 0)
    try:
        # Let signals end the process, which waits in C and has nothing to save yet. SIGTERM is not
        # put back: JAX's preemption service takes it.
        with signals.handled((signal.SIGINT,), signal.SIG_DFL):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            jax.distributed.initialize(
                address,
                number,
                index,
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes can't be joined: {reason(error)}; check --coordinator-address, "
            "--num-processes and --process-id of each"
        ) from error
    with contextlib.ExitStack() as stack:
        if not is_first():
            quiet = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        try:
            try:
                yield
            except InterruptedRunError:  # all processes were interrupted
                jax.distributed.shutdown()
                raise
            jax.distributed.shutdown()
        except InterruptedRunError:
            raise
        except UserError as error:
            if is_first():
                time.sleep(_LINGER_SECONDS)
            raise HostError(str(error), error.exit_status) from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                message = "out of memory; try a smaller --batch-size or --hidden-dim"
            else:
                message = (
                    f"process {jax.process_index()} of {jax.process_count()} can't go on, most "
                    f"likely because another one is gone ({reason(error)}); start all of them "
                    "again; the run resumes from its newest checkpoint"
                )
            raise HostError(message) from error
        except Exception as error:
            traceback.print_exc()
            raise HostError(f"this is a bug in cvae_jax: {reason(error)}") from error


def in_cluster() -> bool:
    """Return whether a scheduler started several processes; JAX then asks it for the rest."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in os.environ for name in slurm):
        return os.environ.get("SLURM_NTASKS", "1") != "1"
    # Kubernetes lists the hosts of a TPU pod in the environment, virtual machines in the metadata.
    # JAX's import sets TPU_SKIP_MDS_QUERY where there is no TPU.
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in os.environ:
        server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
        path = "computeMetadata/v1/instance/attributes/worker-network-endpoints"
        request = urllib.request.Request(
            f"http://{server}/{path}", headers={"Metadata-Flavor": "Google"}
        )
        with (
            contextlib.suppress(OSError),  # no such server: not a virtual machine of that cloud
            urllib.request.urlopen(request, timeout=2) as response,
        ):
            hosts = str(response.read(), "utf-8", "replace")
    return "," in (hosts or "")


def _require_reachable(address: str, *, is_here: bool) -> None:
    """Raise `ConfigError` for a bad address; JAX would end the process without an exception."""
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
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: not the name of a host
            if not is_here and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            problem = "can't be used here" if is_here else "does not answer"
            raise ConfigError(
                f"--coordinator-address {address} {problem} ({reason(error)}); name the "
                "host of process 0, as the others reach it, and a free port on it"
            ) from error


def is_first() -> bool:
    """Return whether this is the process that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Run the body in the first process before the others run it."""
    # On CPUs processes connect when they first wait for each other, within 30 seconds.
    _wait_for_all()
    if not is_first():
        _wait_for_all()
    yield
    if is_first():
        _wait_for_all()


def from_first(number: int) -> int:
    """Return, in every process, the number that the first one passed."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def least(number: float | None) -> float | None:
    """Return the smallest number that any process passed; None counts as infinite."""
    if jax.process_count() == 1:
        return number
    own = np.float64(np.inf if number is None else number)
    smallest = float(np.min(multihost_utils.process_allgather(own)))
    return None if np.isinf(smallest) else smallest


def require_equal(record: bytes, what: str) -> None:
    """Raise `ConfigError`, which names the processes that differ, unless all have equal records."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(record).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if odd := [index for index, other in enumerate(digests) if (other != digests[0]).any()]:
        raise ConfigError(
            f"process {', '.join(map(str, odd))} has other {what} than process 0; start all "
            "processes with the same ones"
        )


def _wait_for_all() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cvae_jax")
