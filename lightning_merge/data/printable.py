"""Names of files and other people's messages, as one line can show them."""


def printable(name: object) -> str:
    r"""A name with `\n`, `\x1b` and `\udcff` for what would break a line or a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(name)
    )


def one_line(error: BaseException) -> str:
    """An error's message in one line; the error's kind where there is no message."""
    return printable(" ".join(str(error).split())) or type(error).__name__
