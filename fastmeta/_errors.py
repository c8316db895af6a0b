"""The base class of errors that the user can fix."""


class UserError(Exception):
    """An error in the options, the files or the environment; the message says how to fix it."""
