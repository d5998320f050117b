"""The one family of errors that a user can fix.

Every message is one line that names the thing, what is wrong with it and what to do. The
command line prints that line and exits with status 2; a library user catches `MergeError`,
or `ValueError`.
"""

_LONGEST = 1500


class MergeError(ValueError):
    """An error that the caller can fix; the message explains how.

    Args:
        message: What is wrong and what to do. It becomes one printable line of bounded length,
            because names in it may come from an untrusted file.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


def printable(value: object, longest: int = _LONGEST) -> str:
    """Its text on one line, with control and unprintable characters escaped.

    A text of more than `longest` characters is cut in the middle.
    """
    text = str(value)
    if len(text) > longest:
        text = f"{text[: 2 * longest // 3]} [...] {text[-longest // 3 :]}"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def markdown_cell(value: object) -> str:
    """Its text as a cell of a Markdown table."""
    # The bar of a name would begin another cell, its line break another line, and what looks like
    # a tag of HTML would not be shown.
    return " ".join(str(value).splitlines()).replace("|", "\\|").replace("<", "&lt;")


def one_line(error: BaseException) -> str:
    """A library's error on one short line; the error's kind where it has no message."""
    return printable(" ".join(str(error).split()), 300) or type(error).__name__


class CheckpointError(MergeError):
    """A file that is missing, truncated, unsafe to read, or not a checkpoint."""


class ArchitectureMismatchError(MergeError):
    """Ingredients whose tensors differ in name or shape."""


class NonFiniteError(MergeError):
    """An ingredient with NaN or infinity in its tensors."""


class DataError(MergeError):
    """A data set that is missing, or a split that cannot be made from it."""


class OutputExistsError(MergeError):
    """An output folder or file that already contains results."""


class ConfigError(MergeError):
    """A recipe or study whose parts do not fit together."""


class SelectionError(ConfigError):
    """A selection that leaves too few ingredients, found only after evaluating them."""


class AlignmentError(MergeError):
    """A network that cannot be traced, or a permutation that does not fit its spec."""
