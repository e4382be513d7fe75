"""How an entry point ends: its exit code, and one sentence instead of a traceback where the user can do something."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable

from sidrec.pipeline.errors import InputError

UNUSABLE_PATH = {  # what to do where the file system says no
    errno.EACCES: "check who may write there, or choose another path",
    errno.EPERM: "check who may write there, or choose another path",
    errno.EROFS: "choose a path on a disk that can be written to",
    errno.ENOENT: "check the path; make the folder first",
    errno.ENOTDIR: "a part of the path is a file, so choose another path",
    errno.EISDIR: "it is a folder, so name a file in it",
    errno.EEXIST: "it is there already as something else, so choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the file would be larger than this account or disk allows",
    errno.EMFILE: "close other programs or raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk reports a fault, so choose another one",
}
WITHOUT_PATH = {errno.EFBIG, errno.EROFS, errno.EMFILE, errno.EIO}  # which say enough where no path is known
READER_GONE = 128 + signal.SIGPIPE  # as a shell says it of other programs
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def run_as_command(main: Callable[[], None]) -> None:
    """Run an entry point: 0 at success; 2 and one sentence at bad input, or when disk or memory are full; 130 at Ctrl-C; 141 where whoever
    read its output, such as `head`, has gone. A character that the terminal's encoding lacks is printed as a question mark."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(READER_GONE)
    except InputError as error:
        sys.exit(_one_sentence(f"error: {error}", 2))
    except Exception as error:
        number, path = refused_by_system(error)
        if number in UNUSABLE_PATH and (path or number in WITHOUT_PATH):
            reason = f"error: {path or 'a file'} cannot be used ({os.strerror(number)}); {UNUSABLE_PATH[number]}."
            sys.exit(_one_sentence(reason, 2))
        if means_memory_full(error):
            reason = f"error: there is not enough memory ({' '.join(str(error).split()) or 'MemoryError'}); give smaller sizes or batches."
            sys.exit(_one_sentence(reason, 2))
        if not means_disk_full(error):
            raise
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        sys.exit(_one_sentence(f"error: the disk is full{where}; free some space and run the same command again.", 2))
    except KeyboardInterrupt:
        sys.exit(_one_sentence("interrupted: what was finished is kept; run the same command again to go on.", 130))


def refused_by_system(error: BaseException) -> tuple[int, str | None]:
    """The number with which the file system said no, 0 where it did not, and the path where it is known.

    Libraries in Rust have errors of their own, which hold it as text. What an error came from counts only for numbers that no program
    handles by itself: a missing file may well have been expected.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno, error.filename
    if isinstance(error, OSError) and (said := OS_ERROR.search(str(error))):  # Polars', with the path behind the number
        return int(said[1]), str(error)[said.end() :].split("\n")[0].strip(": ") or None
    cause: BaseException | None = error
    while cause is not None:
        match = OS_ERROR.search(str(cause))
        number = cause.errno if isinstance(cause, OSError) and cause.errno else int(match[1]) if match else None
        if number in WITHOUT_PATH:
            return number, None
        cause = cause.__cause__ or cause.__context__
    return 0, None


def means_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one it came from, says that the disk is full; Polars, safetensors and torch have their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(
            sign in str(cause)
            for sign in ("No space left on device", "PytorchStreamWriter failed", "inline_container.cc")
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def means_memory_full(error: BaseException) -> bool:
    """Whether an exception says that memory is full; NumPy and torch have their own."""
    signs = ("can't allocate memory", "CUDA out of memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def _drop_output() -> None:
    """Let what is still to be printed go nowhere: flushing it would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_sentence(sentence: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # the output is what has failed
        _drop_output()
    sys.stderr.write(f"\n{sentence}\n")
    sys.stderr.flush()
    return code
