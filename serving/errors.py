"""The exceptions that a user's mistake or environment may raise."""


class UserError(Exception):
    """Something the user can mend: its text is one sentence that says what is wrong and what to do.

    Commands print the text, without a traceback, and exit with status 1.
    """


class EngineError(UserError):
    """An engine failed while it was opened or run; it should be closed, and can be opened again."""
