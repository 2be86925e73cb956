import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from cvae_jax.runtime import signals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_a_request(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(each) for each in NUMBERS]
    with signals.watch() as find_signal:
        assert find_signal() is None
        signal.raise_signal(number)
        assert find_signal() == number
    assert f"{number.name}: saving, then stopping" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in NUMBERS] == handlers


WAITING = """
import time
from cvae_jax.runtime import signals
signals._ONE_REQUEST_SECONDS = 1  # this machine may be slow
with signals.watch():
    print("ready", flush=True)
    {}
"""
# A signal between two calls waits for the end of the second one, so they are short.
SLEEPS = "for _ in range(6000): time.sleep(0.01)"
PRINTS = "print('x' * 1_000_000)  # more than a pipe holds, and nobody reads it"


@pytest.mark.parametrize("waits", [SLEEPS, PRINTS], ids=["sleeping", "printing"])
@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)]
)
def test_a_second_signal_ends_the_process_at_once(
    first: signal.Signals, second: signal.Signals, waits: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(waits)],
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
        process.send_signal(second)  # so soon that it belongs to the first
        time.sleep(1.1)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=20) == 128 + second


def test_a_second_signal_leaves_a_notebook_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython = types.SimpleNamespace(get_ipython=object)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with signals.watch() as find_signal:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert find_signal() == signal.SIGINT


def test_a_request_is_heeded_though_nobody_reads_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(write=fail))
    with signals.watch() as find_signal:
        signal.raise_signal(signal.SIGINT)
        assert find_signal() == signal.SIGINT


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.watch() as find_signal:
            signal.raise_signal(signal.SIGINT)
            assert find_signal() is None
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_another_thread_handles_no_signals() -> None:
    answers: list[int | None] = []

    def work() -> None:
        with signals.watch() as find_signal:
            answers.append(find_signal())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [None]
