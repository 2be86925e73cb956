import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.contest import free_address
from cvae_jax import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stopping.watch() as requested:
        assert requested() is None
        signal.raise_signal(number)
        end = time.monotonic() + 20
        while requested() is None and time.monotonic() < end:
            time.sleep(0.01)
        assert requested() == number
    assert f"{number.name}: saving" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_without_signals_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with stopping.watch() as requested:
        assert requested() is None
    assert capsys.readouterr().err == ""
    assert threading.active_count() == threads


def test_another_thread_has_no_signals_and_does_not_ask_for_them() -> None:
    answers: list[int | None] = []

    def work() -> None:
        with stopping.watch() as requested:
            answers.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [None]


WAITING = """
import hashlib, signal, sys
import jax
from cvae_jax import stopping
if sys.argv[1] == "several":
    jax.process_count = lambda: 2
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # JAX takes it, when processes have joined
with stopping.watch() as requested:
    print("ready", flush=True)
    # A minute or two in C, as when compiling or waiting for a device: no handler runs.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
"""


@pytest.mark.parametrize(
    ("processes", "first", "second"),
    [
        ("one", signal.SIGTERM, signal.SIGINT),
        ("one", signal.SIGTERM, signal.SIGTERM),
        ("several", signal.SIGINT, signal.SIGINT),
    ],
)
def test_a_second_signal_ends_the_process_at_once(
    processes: str, first: signal.Signals, second: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, processes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stderr.readline() == "\n"
        assert f"{first.name}: saving" in process.stderr.readline()
        process.send_signal(second)  # at once: it belongs to the first
        time.sleep(2 * stopping._ONE_REQUEST_SECONDS)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=20) == 128 + second


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.watch() as requested:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
            assert requested() is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


TOGETHER = """
import sys, time
import jax
from cvae_jax import stopping
address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=index)
with stopping.watch() as requested:
    print("ready", flush=True)
    for dispatch in range(600):
        if requested():
            print("stopped after", dispatch, flush=True)
            print(requested(), file=sys.stderr)
            break
        time.sleep(0.05 if index else 0.02)  # one is slower than the other
jax.distributed.shutdown()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_stop_after_the_same_dispatch(
    number: signal.Signals, tmp_path: Path
) -> None:
    address = free_address()
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    processes[1].send_signal(number)  # to one of the two alone
    outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs[0][0].startswith("stopped after"), outputs
    assert outputs[0][0] == outputs[1][0]
    told = [error.splitlines()[-1] for _, error in outputs]
    assert told == [str(int(signal.SIGTERM)), str(int(number))]
