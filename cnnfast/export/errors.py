"""What goes wrong while a network is written to a file."""


class ExportError(RuntimeError):
    """A network that cannot be written in a format, or a file that gives other results when loaded."""
