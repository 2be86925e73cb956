"""Errors with a message for the user: one line that says what is wrong and what to do."""


class UserError(Exception):
    """A failed run. Commands print the message without a traceback and exit with `exit_status`.

    Example:
        >>> import cvae_jax
        >>> from cvae_jax.errors import UserError
        >>> try:
        ...     cvae_jax.load("runs/nowhere")
        ... except UserError as error:  # all errors of this module are
        ...     print(error, "- exit status", error.exit_status)
        no trained model in runs/nowhere; use ... - exit status 2
    """

    exit_status = 1


class ConfigError(UserError):
    """An argument, or a combination of arguments, that can't be used.

    Example:
        >>> import cvae_jax
        >>> cvae_jax.train("mnist", epochs=0)
        Traceback (most recent call last):
        cvae_jax.errors.ConfigError: --epochs 0 can't be used; choose a whole number from 1 to ...
    """

    exit_status = 2


class DataError(UserError):
    """A data set that can't be found, fetched or read.

    Example:
        >>> from pathlib import Path
        >>> import cvae_jax
        >>> Path("empty").mkdir()
        >>> cvae_jax.load_dataset("mine", source="idx", data_dir="empty")
        Traceback (most recent call last):
        cvae_jax.errors.DataError: empty must hold one file named like train-images...
    """


class CheckpointError(UserError):
    """A checkpoint that can't be found, written or read.

    Example:
        >>> from pathlib import Path
        >>> import cvae_jax
        >>> Path("damaged").mkdir()
        >>> Path("damaged/config.json").write_text("{")
        1
        >>> cvae_jax.load("damaged")
        Traceback (most recent call last):
        cvae_jax.errors.CheckpointError: damaged/config.json can't be read: ...
    """


class HostError(UserError):
    """A failure of one of several processes that train together.

    Example:
        >>> from cvae_jax.errors import HostError
        >>> HostError("process 1 is gone").exit_status
        1
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = exit_status


class InterruptedRunError(UserError):
    """A run that a signal stopped: Ctrl-C, a notebook's stop button, or a preempted machine.

    Example:
        >>> import signal
        >>> from cvae_jax.errors import InterruptedRunError
        >>> InterruptedRunError("stopped and saved after epoch 3", signal.SIGTERM).exit_status
        143
    """

    def __init__(self, message: str, signal_number: int) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = 128 + signal_number  # the convention of shells
