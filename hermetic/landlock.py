"""Let the Linux kernel refuse files to this process, to its C code and to its programs.

Landlock (Linux 5.13 and later) takes a list of files and folders with what may be done
to each; what is not on it is denied with EACCES, to this thread and to all that it
starts, for good. See landlock(7) and linux/landlock.h for the numbers.
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of system calls, the same on every architecture."""
ASK_VERSION = 1
PATH_BENEATH = 1
NO_NEW_PRIVILEGES = 38

EXECUTE, WRITE_FILE, READ_FILE, REMOVE_FOLDER, REMOVE_FILE = 1, 2, 4, 16, 32
MAKE_ANY = 0b1111111 << 6  # a device, folder, regular file, socket, pipe or link
REFER = 1 << 13  # to move or link a file into another folder; since version 2
TRUNCATE = 1 << 14  # since version 3
TCP = 0b11  # to bind and to connect; since version 4

READ = EXECUTE | READ_FILE
WRITE = WRITE_FILE | REMOVE_FOLDER | REMOVE_FILE | MAKE_ANY | REFER | TRUNCATE
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE


def _system_call(number: int, *arguments: Any) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))


def _succeed(number: int, *arguments: Any) -> int:
    if (result := _system_call(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), "Landlock fails")
    return result


def version() -> int:
    """Return the version of Landlock that this kernel has, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(_system_call(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION), 0)


def restrict(allowed: Mapping[str, int], *, network: bool) -> bool:
    """Allow what is listed, READ or WRITE or both by path, and deny everything else.

    What a folder is allowed goes for all that it holds. Paths that do not exist are
    left out. Listing folders and asking for the size or the time of a file are not
    denied, nor is what is open already. Without `network`, TCP is denied, by kernels
    that can do so. Return whether this kernel holds the thread from now on.
    """
    known = version()
    if not known:
        return False
    files = READ | WRITE
    files &= ~(REFER if known < 2 else 0) & ~(TRUNCATE if known < 3 else 0)
    handled = struct.pack("Q", files)
    if known >= 4:
        handled += struct.pack("Q", 0 if network else TCP)
    rules = _succeed(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    try:
        for path, access in allowed.items():
            _add(rules, path, access & files)
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # else the next fails
        _succeed(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def _add(rules: int, path: str, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            access &= OF_FILES
        if access:
            rule = struct.pack("=Qi", access, handle)
            _succeed(ADD_RULE, rules, PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)


def without(folder: str, kept: str) -> Iterable[str]:
    """Return what to allow for all of a folder but `kept`, which may lie inside it."""
    if not f"{kept}/".startswith(folder.rstrip("/") + "/"):
        return [folder]
    if kept == folder:
        return []
    try:
        inside = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in inside]
    return [path for above in paths for path in without(above, kept)]
