"""The commands of `python -m cnnfast`: one module each, with `main(argv) -> exit code`."""


class CommandError(RuntimeError):
    """A command that cannot be done as it was given. The message says why."""
