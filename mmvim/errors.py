"""Errors a user can act on."""


class UserError(RuntimeError):
    """Something the user gave cannot be used; the message says what, why and what to do."""

    exit_code = 1


class UsageError(UserError):
    """The command line itself is wrong."""

    exit_code = 2


def one_line(text: object) -> str:
    """Text with every run of white space, newlines included, as a single blank."""
    return ' '.join(str(text).split())


def first_line(error: BaseException) -> str:
    """First line of an exception's message; its type if there is none."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__
