"""What can go wrong, and the exit code that says so."""

from __future__ import annotations

import errno


class CosmosError(Exception):
    """An error whose message is meant for the person at the terminal; shown without a traceback."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; ``raise ... from`` adds nothing to it."""
        return [f"{type(self).__name__}: {self}"]


class WorkError(CosmosError):
    """The work itself failed: exit code 1."""


class Stopped(CosmosError):
    """A worker was asked to stop, and did at a safe point: the same command resumes from there."""

    #: EX_TEMPFAIL of sysexits.h: try again later.
    exit_code = 75


class RequestError(CosmosError):
    """The request was wrong and nothing was started: exit code 2."""

    exit_code = 2


def explain_os_error(error: OSError, doing: str) -> str:
    """One sentence for an operating-system error: what failed, where, what to do."""
    where = f" ({error.filename})" if error.filename else ""
    hints = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose a place that you may write to",
        errno.EPERM: "permission denied; choose a place that you may write to",
        errno.EROFS: "the file system is read-only; choose a place that you may write to",
    }
    reason = hints.get(error.errno or 0, error.strerror or str(error))
    return f"{doing} failed{where}: {reason}"
