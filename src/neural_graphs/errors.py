"""The two errors that a person using the library can meet and act on."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input: the message is one line that says what is wrong and what to do. Exit code 2."""


class RunError(RuntimeError):
    """Right input, but the work failed (disk full, download broken off). Exit code 1."""
