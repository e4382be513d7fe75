"""What is said to a user who gave something wrong."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave is wrong. The message is one sentence: which file, row or field, what is wrong, what to do."""
