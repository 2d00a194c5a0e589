"""Texts of users and files, as a terminal may show them."""


def printable(text: str) -> str:
    """Return a text in one line, with what names of files and settings hold made visible.

    Example:
        >>> printable("no such file: a" + chr(7) + "b") == "no such file: a" + chr(92) + "x07b"
        True
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
