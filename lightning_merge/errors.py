"""The one family of errors that a user can mend.

Every message is one line that names the thing, says what is wrong with it and what to
do. The command line prints that line and exits with status 2; a library user catches
`MergeError`, or `ValueError`.
"""


class MergeError(ValueError):
    """Something that the caller can mend; the message says how."""


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
