"""Errors with a message for the user: one line that says what is wrong and what to do."""


class UserError(Exception):
    """A failed run. Commands print the message without a traceback and exit with `exit_status`."""

    exit_status = 1


class ConfigError(UserError):
    """An argument, or a combination of arguments, that can't be used."""

    exit_status = 2


class DataError(UserError):
    """A data set that can't be found, fetched or read."""


class CheckpointError(UserError):
    """A checkpoint that can't be found, written or read."""


class HostError(UserError):
    """A failure of one of several processes that train together."""

    def __init__(self, message: str, exit_status: int = 1) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = exit_status


class InterruptedRunError(UserError):
    """A run that a signal stopped: Ctrl-C, a notebook's stop button, or a preempted machine."""

    def __init__(self, message: str, signal_number: int) -> None:  # noqa: D107
        super().__init__(message)
        self.exit_status = 128 + signal_number  # the convention of shells
