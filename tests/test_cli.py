import contextlib
import dataclasses
import gc
import io
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cvae_jax
from cvae_jax import cli
from cvae_jax.config import TrainConfig
from cvae_jax.options import EvaluateOptions, JudgeOptions, RunOptions, SampleOptions
from cvae_jax.types import (
    CheckpointError,
    ConfigError,
    DataError,
    UserError,
)

SCRIPTS = Path(__file__).parents[1] / "scripts"
SETTINGS: dict[str, tuple[Any, ...]] = {
    "train": (RunOptions, TrainConfig),
    "sample": (SampleOptions,),
    "evaluate": (EvaluateOptions,),
    "train_judge": (JudgeOptions,),
}
OPTIONS = {
    script: [
        f"--{field.name.replace('_', '-')}"
        for settings in classes
        for field in dataclasses.fields(settings)
    ]
    for script, classes in SETTINGS.items()
}
NO_WHOLE_NUMBER = ["", "x", "1.5", "1e3", "nan", "inf"]
NO_COUNT = [*NO_WHOLE_NUMBER, "0", "-1", "2147483648", "9" * 30]
NO_DIM = [*NO_WHOLE_NUMBER, "0", "-1", "65537", "9" * 30]
NO_SEED = [*NO_WHOLE_NUMBER, "-1", "4294967296", "9" * 30]
NO_SOURCE = ["", "x", "0", "-1", "idx"]
BAD: dict[tuple[str, str], list[str]] = {
    ("train", "--epochs"): NO_COUNT,
    ("train", "--dataset"): ["", " ", "../mnist", ".hidden", "/mnist", "a//b", "a b", "a\nb"],
    ("train", "--batch-size"): NO_COUNT,
    ("train", "--learning-rate"): ["", "x", "0", "-1", "nan", "inf", "-inf", "1e999", "1e-999"],
    ("train", "--workdir"): [""],  # any other text may be a path
    ("train", "--data-dir"): [""],
    ("train", "--hidden-dim"): NO_DIM,
    ("train", "--latent-dim"): NO_DIM,
    ("train", "--seed"): NO_SEED,
    ("train", "--sample-every"): NO_COUNT,
    ("train", "--checkpoint-every"): NO_COUNT,
    ("train", "--source"): NO_SOURCE,
    ("train", "--binarize"): ["", "x", "0", "Dynamic", "static"],
    ("train", "--precision"): ["", "x", "0", "float16", "bf16", "32"],
    ("train", "--num-devices"): NO_COUNT,
    ("train", "--data-memory"): ["", "x", "0", "-1", "nan", "inf", "1e10"],
    ("train", "--coordinator-address"): ["", "host", ":1", "host:", "host:0", "host:65536", "h:x"],
    ("train", "--num-processes"): NO_COUNT,
    ("train", "--process-id"): [*NO_WHOLE_NUMBER, "-1", "0", "1"],
    ("sample", "--digit"): NO_WHOLE_NUMBER,
    ("sample", "--num"): NO_COUNT,
    ("sample", "--seed"): NO_SEED,
    ("sample", "--workdir"): [""],
    ("sample", "--show"): ["", "yes", "0", "True"],
    ("sample", "--step"): [*NO_WHOLE_NUMBER, "-1", "9" * 30],
    ("sample", "--out"): ["", "x", "0", "nan", "digit.jpg", "png"],
    ("sample", "--npz"): ["", "x", "0", "nan", "digits.npy", "npz"],
    ("evaluate", "--workdir"): [""],
    ("evaluate", "--step"): [*NO_WHOLE_NUMBER, "-1", "9" * 30],
    ("evaluate", "--num-importance-samples"): NO_COUNT,
    ("evaluate", "--num-samples"): [*NO_COUNT, "9"],
    ("evaluate", "--seed"): NO_SEED,
    ("evaluate", "--source"): NO_SOURCE,
    ("evaluate", "--data-dir"): [""],
    ("train_judge", "--out"): ["", "x", "0", "nan", "judge.npy", "npz"],
    ("train_judge", "--dataset"): [""],
    ("train_judge", "--source"): NO_SOURCE,
    ("train_judge", "--data-dir"): [""],
}

Run = Callable[..., tuple[int | str | None, str, str]]


class Terminal(io.TextIOWrapper):
    """Standard output as it is on a terminal, in a notebook's cell or in a pipe."""

    def __init__(self, encoding: str, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> str:
        self.flush()
        self.seek(0)
        return self.read()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give a function that runs a script: exit status, standard output and error.

    What trains and draws can't be imported, so that a value that gets past the checks fails
    the test and starts nothing. Nothing may be written before that either.
    """
    monkeypatch.chdir(tmp_path)
    for module in ("experiment", "drawing", "assessment", "judges"):
        monkeypatch.setitem(sys.modules, f"cvae_jax.{module}", None)
        monkeypatch.delattr(cvae_jax, module, raising=False)

    def run(
        script: str, *arguments: str, encoding: str = "utf-8", is_terminal: bool = False
    ) -> tuple[int | str | None, str, str]:
        path = str(SCRIPTS / f"{script}.py")
        output = Terminal(encoding, is_terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        return stop.value.code, output.text(), capsys.readouterr().err

    return run


def assert_refused(ended: tuple[int | str | None, str, str], *words: str) -> None:
    """Check that a script ended as a user expects who mistyped an argument."""
    status, output, error = ended
    assert status == 2
    assert output == ""
    assert error.startswith("error: ")
    assert error.endswith("\n")
    line = error[:-1]
    assert line.isprintable()
    assert not set(line) & set("│╭╰─")
    assert "---" not in line
    assert [word for word in words if word not in line] == []


def test_every_option_has_its_bad_values() -> None:
    assert set(BAD) == {(script, option) for script in OPTIONS for option in OPTIONS[script]}


@pytest.mark.parametrize(
    ("script", "option", "value"),
    [(script, option, value) for (script, option), values in BAD.items() for value in values],
)
def test_a_bad_value_is_refused_in_a_line_that_names_the_option(
    script: str, option: str, value: str, run: Run
) -> None:
    # Of a flag, which takes no value, it is the value that is unknown.
    assert_refused(run(script, option, value), value if option == "--show" else option)


@pytest.mark.parametrize(
    ("script", "option"),
    [(script, option) for script, options in OPTIONS.items() for option in options],
)
def test_an_empty_value_is_refused_in_either_way_to_write_it(
    script: str, option: str, run: Run
) -> None:
    assert_refused(run(script, option, ""), f"{option} ''", "is empty")
    assert_refused(run(script, f"{option}="), f"{option}=''", "is empty")


@pytest.mark.parametrize(
    ("script", "option"),
    [(script, option) for script, options in OPTIONS.items() for option in options],
)
def test_an_option_needs_its_value(script: str, option: str, run: Run) -> None:
    if option != "--show":
        assert_refused(run(script, option), option)


@pytest.mark.parametrize(
    ("script", "mistyped", "suggestions"),
    [
        ("train", ["--epoch", "3"], ["--epochs"]),
        ("train", ["--latent-dims", "3"], ["--latent-dim"]),
        ("train", ["--latentdim=3"], ["--latent-dim"]),
        ("train", ["--epoch", "3", "--latent-dims", "5"], ["--epochs", "--latent-dim"]),
        ("sample", ["--digits", "3"], ["--digit"]),
        ("sample", ["--nums", "3"], ["--num"]),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_was_meant(
    script: str, mistyped: list[str], suggestions: list[str], run: Run
) -> None:
    ended = run(script, *mistyped)
    assert_refused(ended, *(argument.split("=")[0] for argument in mistyped))
    assert set(suggestions) <= set(ended[2].replace(",", " ").split())


@pytest.mark.parametrize("script", OPTIONS)
def test_an_argument_without_an_option_is_refused(script: str, run: Run) -> None:
    assert_refused(run(script, "mnist"), "mnist")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("columns", ["30", "100"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "x"], ["--epochs", "'x'"]),
        (["--epoch", "3"], ["--epoch,", "--epochs"]),
        (["--workdir"], ["--workdir"]),
        (["--source", "x"], ["--source", "bundled"]),
    ],
)
def test_an_error_is_one_plain_line_wherever_the_output_goes(
    arguments: list[str],
    words: list[str],
    columns: str,
    is_terminal: bool,
    encoding: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ended = run("train", *arguments, encoding=encoding, is_terminal=is_terminal)
    assert_refused(ended, *words)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("script", OPTIONS)
def test_help_lists_every_option(script: str, is_terminal: bool, encoding: str, run: Run) -> None:
    status, output, error = run(script, "--help", encoding=encoding, is_terminal=is_terminal)
    assert status == 0
    assert error == ""
    for option in OPTIONS[script]:
        assert option in output


@pytest.mark.parametrize("script", OPTIONS)
def test_help_and_errors_come_before_anything_large_is_imported(
    script: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("flax", "optax", "orbax", "matplotlib", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    assert run(script, "--help")[0] == 0
    assert run(script, "--seed", "x")[0] == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("what to do"), 1),
        (DataError("what to do"), 1),
        (CheckpointError("what to do"), 1),
        (ConfigError("what to do"), 2),
    ],
)
def test_an_error_of_the_user_is_a_line_and_an_exit_status(
    error: UserError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, cli.one_line_errors():
        raise error
    assert stop.value.code == status
    assert capsys.readouterr() == ("", "error: what to do\n")


@pytest.mark.usefixtures("stays")
def test_control_c_ends_as_the_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    # Both are expected, because an interrupt that got through would end the tests themselves.
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop, cli.one_line_errors():
        raise KeyboardInterrupt
    assert isinstance(stop.value, SystemExit)
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.usefixtures("stays")
def test_sigterm_ends_as_the_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned: list[str] = []

    @contextlib.contextmanager
    def cleaning_up() -> Iterator[None]:
        try:
            yield
        finally:
            cleaned.append("all")

    with pytest.raises(SystemExit) as stop, cli.one_line_errors(), cleaning_up():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert capsys.readouterr() == ("", "stopped\n")
    assert cleaned == ["all"]


def test_a_signal_does_not_wait_for_what_is_being_computed() -> None:
    code = """
from cvae_jax import cli
with cli.one_line_errors():
    import signal
    import jax
    endless = jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda _, y: y @ x, x))
    running = endless(jax.numpy.eye(800))
    signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped\n")


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_the_handler_of_sigterm_is_put_back(before: Any) -> None:
    old = signal.signal(signal.SIGTERM, before)
    try:
        with cli.one_line_errors():
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, old)


def test_errors_are_one_line_in_a_thread_too(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with contextlib.suppress(SystemExit), cli.one_line_errors():
            raise UserError("what to do")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capsys.readouterr() == ("", "error: what to do\n")


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "stopped\n")],
)
@pytest.mark.parametrize("module", ["jax", "tyro"])
@pytest.mark.parametrize("script", OPTIONS)
def test_a_signal_while_a_script_is_being_imported_is_one_line(
    script: str, module: str, number: signal.Signals, status: int, line: str, tmp_path: Path
) -> None:
    # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
    unignored = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal\n{unignored}\nsignal.raise_signal({int(number)})\n"
    (tmp_path / f"{module}.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), str(SCRIPTS.parent)])
    needed = ["--out", "judge.npz"] if script == "train_judge" else []
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{script}.py", *needed],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


def test_the_garbage_collector_rests_during_imports_alone() -> None:
    with contextlib.suppress(ImportError), cli.many_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x1b[2Jb", "a\udcffb", "a\u2028b"])
def test_whatever_a_path_holds_its_error_is_one_plain_line(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), cli.one_line_errors():
        raise UserError(text)
    assert capsys.readouterr().err == f"error: {ascii(text)[1:-1]}\n"


@pytest.mark.parametrize("text", ["Zürich", "数字", "\udcff"])
def test_a_path_can_be_printed_where_the_output_has_no_such_letters(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Terminal("ascii", is_terminal=False)
    monkeypatch.setattr(sys, "stdout", output)
    with cli.one_line_errors():
        print(text)
    assert output.text() == f"{ascii(text)[1:-1]}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("script", OPTIONS)
def test_an_output_that_is_full_is_one_line(script: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, SCRIPTS / f"{script}.py", "--help"],
            env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    expected = "error: the standard output can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_an_error_of_a_file_that_is_no_users_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError), cli.one_line_errors():
        Path("nowhere/file").read_bytes()


def test_too_little_memory_is_answered_with_what_to_make_smaller(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop, cli.one_line_errors():
        raise MemoryError
    assert stop.value.code == 1
    assert "--batch-size" in capsys.readouterr().err


def test_too_large_an_array_of_jax_names_the_options_that_cost_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import jax.numpy as jnp

    with pytest.raises(SystemExit) as stop, cli.one_line_errors():
        jnp.zeros((2**24, 2**24)).block_until_ready()  # a petabyte
    assert stop.value.code == 1
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), SystemExit(7)])
def test_a_bug_keeps_its_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, cli.one_line_errors():
        raise error
    assert caught.value is error


def test_what_ends_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with cli.one_line_errors():
        pass
    assert capsys.readouterr() == ("", "")
