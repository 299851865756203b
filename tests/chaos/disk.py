"""A disk that fails: from some moment on the kernel refuses what this process would write, as it does on a full disk.

A seccomp filter refuses the system calls, so every library meets the fault as it would meet the real one; the process
can't take it back. Reading, renaming and deleting work, and so do the standard output and pipes that are open already.
"""

import contextlib
import ctypes
import os
import platform
import stat
import struct

# System calls by machine: those with a descriptor first, and those that make something.
_CALLS = {
    "x86_64": {
        "audit": 0xC000003E,
        "seccomp": 317,
        # write, pwrite64, writev, sendfile, ftruncate, fallocate, pwritev, copy_file_range, pwritev2
        "write": (1, 18, 20, 40, 77, 285, 296, 326, 328),
        "sync": (74, 75),  # fsync, fdatasync
        "mkdir": (83, 258),  # mkdir, mkdirat
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "seccomp": 277,
        "write": (64, 70, 66, 71, 46, 47, 68, 285, 287),
        "sync": (82, 83),
        "mkdir": (34,),
    },
}
_LOAD, _EQUAL, _ABOVE, _RETURN = 0x20, 0x15, 0x25, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def available() -> bool:
    """Whether `fail` works on this system."""
    return platform.system() == "Linux" and platform.machine() in _CALLS and _filters()


def _filters() -> bool:
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            return "errno" in file.read()
    except OSError:
        return False


def _not_on_disk() -> list[int]:
    """Open pipes, sockets and what else is no file."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.fstat(int(name)).st_mode):
                found.append(int(name))
    return found


def fail(error: int, *, sync: bool) -> None:
    """From now on, in all threads: writing fails with this errno, so does making folders, and forcing if `sync`.

    Raises:
        OSError: the system has no such filters.
    """
    calls = _CALLS[platform.machine()]
    refused = [*calls["mkdir"], *(calls["sync"] if sync else ())]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, calls["audit"]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | error)]
    writes = calls["write"]
    # One that writes skips the others and the return behind them.
    program += [(_EQUAL, len(writes) - place, 0, number) for place, number in enumerate(writes)]
    program += [
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ABOVE, 1, 0, 2),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for descriptor in _not_on_disk():
        program += [(_EQUAL, 0, 1, descriptor), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ERROR | error))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    described = _Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        calls["seccomp"], _SET_FILTER, _ALL_THREADS, ctypes.byref(described)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
