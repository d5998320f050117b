"""The one family of errors that a user can mend.

Every message is one line that names the thing, says what is wrong with it and what to
do. The command line prints that line and exits with status 2; a library user catches
`MergeError`, or `ValueError`.
"""

_LONGEST = 1500


class MergeError(ValueError):
    """Something that the caller can mend; the message says how.

    Args:
        message: What is wrong and what to do. It becomes one printable line of bounded length,
            because names in it may come from a stranger's file.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line: what a terminal would obey or cannot show is escaped.

    Args:
        text: Any text.
        longest: How many characters of it may stay; the middle of a longer one goes.
    """
    if len(text) > longest:
        text = f"{text[: 2 * longest // 3]} [...] {text[-longest // 3 :]}"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class CheckpointError(MergeError):
    """A file that is missing, truncated, unsafe to read, or no checkpoint."""


class ArchitectureMismatchError(MergeError):
    """Ingredients whose tensors differ in name or shape."""


class NonFiniteError(MergeError):
    """An ingredient that holds NaN or infinity."""


class DataError(MergeError):
    """A data set that is missing, or a split that cannot be made from it."""


class OutputExistsError(MergeError):
    """An output folder or file that already holds results."""


class ConfigError(MergeError):
    """A recipe or study whose parts do not fit together."""


class SelectionError(ConfigError):
    """A selection that leaves too few ingredients; known when they have been looked at."""


class AlignmentError(MergeError):
    """A network that cannot be traced, or a permutation that does not fit its spec."""
