"""What the program says when something fails: a reason for programs and a sentence for people."""

import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Failure(Exception):  # noqa: N818 - the word of this program
    """`reason` is a word of the operator's list of reasons; `retryable`: the same may succeed later by itself."""

    def __init__(self, reason, message, retryable=True):
        Exception.__init__(self, message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


def of(error, otherwise):
    """(reason, message) of any exception; `otherwise` names the step's own reason."""
    if isinstance(error, Failure):
        return error.reason, error.message
    if isinstance(error, OSError):
        where = " ".join(str(name) for name in (error.filename, error.filename2) if name)
        text = "{0}{1}".format(error.strerror or error, ": " + where if where else "")
        return ("DiskFull" if error.errno in NO_SPACE else otherwise), text
    return otherwise, "{0}: {1}".format(type(error).__name__, error)
