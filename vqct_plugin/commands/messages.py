"""What the library logs, shown to whoever runs a command."""

import logging
import sys


class _Terminal(logging.Handler):
    """Information on stdout, warnings on stderr, each at once; wherever these two lead by then."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def show_messages() -> None:
    """From now on the library's messages are seen on the terminal, once each however often this is called."""
    logger = logging.getLogger("vqct_plugin")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
