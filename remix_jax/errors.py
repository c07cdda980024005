"""The one error that a user can cause."""


class InputError(ValueError):
    """A wrong flag, config value, directory or data row, in one line: what is wrong, where, and
    what would be right. The mains print it without a traceback and exit with code 2.
    """
