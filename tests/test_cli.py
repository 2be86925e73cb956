import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import cvae_jax
from cvae_jax.commands import cli
from cvae_jax.errors import ConfigError, DataError, HostError, InterruptedRunError, UserError

ROOT = Path(__file__).parents[1]
FIRST_OPTIONS = {
    "train": "--preset",
    "sample": "--workdir",
    "evaluate": "--workdir",
    "page": "--workdir",
    "export": "--workdir",
    "data": "--sheet",
    "import": "--workdir",
    "train-judge": "--out",
}
HOST_OPTIONS = ["--coordinator-address", "--num-processes", "--process-id"]


def python(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python that finds the package of this checkout."""
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "timeout": 100} | options
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT)} | options.get("env", {})
    return subprocess.run([sys.executable, *arguments], check=False, **options)


def cvae(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "cvae_jax", *arguments, **options)


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("train", ["--epochs", "0"], ["error: --epochs 0", "choose a whole number from 1"]),
        ("train", ["--epoch", "3"], ["--epoch, 3", "--epochs"]),
        ("train", ["--workdir", ""], ["error: --workdir '' is empty"]),
        ("train", ["--data-dir="], ["error: --data-dir='' is empty"]),
        ("sample", ["--seed", "x"], ["--seed", "'x'"]),
        (None, ["trian"], ["error: there is no command trian; choose train, sample"]),
    ],
)
def test_bad_arguments_exit_with_2_and_are_named(
    command: str | None, arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command, arguments)
    output, error = capsys.readouterr()
    assert stop.value.code == 2
    assert output == ""
    assert [text for text in named if text not in error] == []
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("what to do"), 1, "error: what to do\n"),
        (DataError("a\nb\x1b\udcff"), 1, "error: a\\nb\\x1b\\udcff\n"),
        (ConfigError("what to do"), 2, "error: what to do\n"),
        (HostError("gone", 3), 3, "error: gone\n"),
        (InterruptedRunError("saved", signal.SIGTERM), 143, "saved\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["run", "line", "config", "host", "interrupted", "Ctrl-C"],
)
def test_an_error_is_one_line_and_an_exit_status(
    error: BaseException,
    status: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as stop, cli.one_line_errors():
        raise error
    assert stop.value.code == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError("a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"), cli.one_line_errors():
        raise error


def test_too_large_an_array_names_the_options_that_cost_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop, cli.one_line_errors():
        jnp.zeros((2**24, 2**24)).block_until_ready()  # a petabyte
    assert stop.value.code == 1
    assert "error: out of memory; try a smaller --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("command", [None, "train"])
def test_the_version_is_printed(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(command, ["--version"])
    assert capsys.readouterr().out == f"cvae_jax {cvae_jax.__version__}\n"


HELP = """
import sys
from cvae_jax.commands.cli import main
try:
    main(sys.argv[1], ["--help"])
finally:
    large = {"jax", "flax", "optax", "orbax", "numpy", "matplotlib", "tensorflow_datasets"}
    print(large & sys.modules.keys())
"""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_command_and_script_comes_without_importing_anything_large(command: str) -> None:
    done = python("-c", HELP, command)
    assert (done.returncode, done.stderr) == (0, "")
    *text, imported = done.stdout.splitlines()
    assert imported == "set()"
    options = [word for word in done.stdout.split() if word.startswith("--")]
    assert options[1] == FIRST_OPTIONS[command]
    assert command != "train" or options[-3:] == HOST_OPTIONS
    script = python(ROOT / "scripts" / f"{command.replace('-', '_')}.py", "--help")
    assert script.stdout.splitlines()[1:] == text[1:]


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0)])
def test_without_a_command_all_are_listed(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(None, arguments)
    output = capsys.readouterr().out
    assert stop.value.code == status
    assert [name for name in cli.COMMANDS if f"  {name} " not in output] == []


@pytest.mark.parametrize("columns", ["1", "2", "5"])
def test_a_narrow_terminal_gets_its_help_and_errors(columns: str) -> None:
    done = cvae("train", "--help", env={"COLUMNS": columns}, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert cvae("train", "--epoch", "3", env={"COLUMNS": columns}, timeout=20).returncode == 2


CLOSED = """
import os, sys
from cvae_jax.commands.cli import one_line_errors
with one_line_errors():
    print("to nobody", flush=True)
    print("to nobody", file=sys.stderr, flush=True)
    with open(sys.argv[1], "w") as file:
        os.write(2, b"by C code, for nobody")
        file.write(str(file.fileno() > 2))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_output_is_written_to_nobody(closed: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", CLOSED]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, tmp_path / "file"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "True"


def test_a_reader_that_has_read_enough_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = cvae("train", "--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = cvae("train", "--help", stdout=full)
    expected = "error: the output can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_output_is_written_at_once_and_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    with cli.one_line_errors():
        print("Zürich 数字")
        assert output.buffer.getvalue() == b"Z\\xfcrich \\u6570\\u5b57\n"


def test_work_goes_on_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as output:
        monkeypatch.setattr(sys, "stdout", output)
        with cli.tolerant_output():
            print("an epoch", flush=True)
            assert sys.stdout.fileno() == writer


NOTEBOOK = """
import sys, types
try:
    from IPython.core.interactiveshell import InteractiveShell
    InteractiveShell.instance()
except ImportError:
    sys.modules["IPython"] = types.ModuleType("IPython")
    sys.modules["IPython"].get_ipython = object
from cvae_jax.commands.cli import one_line_errors
try:
    with one_line_errors():
        raise KeyboardInterrupt
except SystemExit as stop:
    print("alive", stop.code)
"""


def test_ctrl_c_leaves_a_notebook_alive(tmp_path: Path) -> None:
    done = python("-c", NOTEBOOK, env={"IPYTHONDIR": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive 130\n", "interrupted\n")


COMPUTING = """
from cvae_jax.commands.cli import one_line_errors
with one_line_errors():
    import signal
    import jax
    endless = jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda _, y: y @ x, x))
    running = endless(jax.numpy.eye(800))
    signal.raise_signal(signal.SIGTERM)
"""


def test_sigterm_does_not_wait_for_what_jax_computes() -> None:
    done = python("-c", COMPUTING)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped\n")


@pytest.mark.parametrize("module", ["jax", "tyro"])
def test_ctrl_c_during_the_imports_is_one_line(module: str, tmp_path: Path) -> None:
    # A shell's job in the background ignores Ctrl-C, and so does what it starts.
    unignored = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal\n{unignored}\nsignal.raise_signal(signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = cvae("train", env={"PYTHONPATH": path}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_sigterm_cleans_up_and_its_handler_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    before, cleaned = signal.getsignal(signal.SIGTERM), []
    with (
        pytest.raises(SystemExit) as stop,
        cli.one_line_errors(),
        contextlib.closing(types.SimpleNamespace(close=lambda: cleaned.append("all"))),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert cleaned == ["all"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_garbage_collector_rests_during_imports_alone() -> None:
    with contextlib.suppress(ImportError), cli.many_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_workdir_that_is_not_valid_utf_8_is_refused(tmp_path: Path) -> None:
    done = cvae("train", "--workdir", b"runs/\xff", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir runs/\\udcff can't be used: 'utf-8' codec")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_control_c_that_a_module_would_swallow_is_heeded_after_the_imports() -> None:
    def import_modules() -> None:
        # A C extension turns the exception into an ImportError.
        with cli.many_imports(), contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        import_modules()
