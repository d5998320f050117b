"""Numbers on the command line that are a count where they are whole, and else a share."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, get_args


def read_integers_first(function: Callable[..., Any]) -> None:
    """Has arguments that take integers and fractions read `1` as 1, not as 1.0.

    Python's `Union[int, float]` is whichever of its two orders a process happened to write first
    (`typing` caches them as equal), and parsers try the types in that order: where `rich` was
    imported before Lightning, `limit_test_batches=1` was all batches in the place of one. The
    function's annotations are written anew, as the same types.
    """
    for name, annotation in function.__annotations__.items():
        types = get_args(annotation)
        if int in types and float in types:
            rest = [one for one in types if one not in (int, float)]
            # Unions by `|` are not cached.
            function.__annotations__[name] = reduce(operator.or_, rest, int | float)
