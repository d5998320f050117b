"""Short error messages of a command line, for parsers of jsonargparse."""

import sys
from typing import Any, NoReturn


class ShortErrors:
    """Mixed into a parser: an error is the message and where to read more, not the usage."""

    prog: str
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with status 2; raises where errors are to be raised."""
        if not self.exit_on_error:
            parent: Any = super()
            parent.error(message, ex)
        print(f"{self.prog}: {message}\n(--help lists the options)", file=sys.stderr)
        raise SystemExit(2)
