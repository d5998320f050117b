"""The rule of `einsum`: any contraction in which no operand repeats a letter."""

from string import ascii_letters

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout
from lightning_merge.trace.rules.rule_table import Call, Unsupported, roles_of_factors, rule


@rule("einsum")
def einsum(call: Call) -> Layout:
    """Tie what runs over the same letter; sum over the letters that the result lacks."""
    operands = call["tensors"]
    ranks = [len(operand.dims) for operand in operands]
    inputs, output = spelled_out(call["equation"], ranks)
    if any(len(set(letters)) != len(letters) for letters in inputs):
        raise Unsupported  # a diagonal
    roles_of_factors(call, operands, inputs, output)
    return algebra.contract(call.units, operands, inputs, output, call.reason)


def spelled_out(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, without ellipsis and with an arrow.

    Example:
        >>> spelled_out("...ij, jk", [4, 2])
        (['YZij', 'jk'], 'YZik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    spare = [letter for letter in reversed(ascii_letters) if letter not in equation]
    widths = [
        rank - len(letters.replace("...", ""))
        for letters, rank in zip(inputs, ranks, strict=True)
        if "..." in letters
    ]
    dots = "".join(sorted(spare[: max(widths, default=0)]))
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        right = ("..." if dots else "") + "".join(once)
    full = []
    for letters, rank in zip(inputs, ranks, strict=True):
        width = rank - len(letters.replace("...", ""))
        full.append(letters.replace("...", dots[len(dots) - width :]))
    return full, right.replace("...", dots)
