"""Restrict which files a process may use, including its C code and programs.

Landlock (Linux 5.13 and later) takes a list of files and folders with the access to
each, and denies everything else with EACCES, irrevocably, for this thread and anything
it starts. See landlock(7) and linux/landlock.h for the numbers.
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Mapping
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of system calls, the same on every architecture."""
GET_VERSION = 1
PATH_BENEATH = 1
NO_NEW_PRIVILEGES = 38

EXECUTE, WRITE_FILE, READ_FILE, REMOVE_FOLDER, REMOVE_FILE = 1, 2, 4, 16, 32
MAKE_ANY = 0b1111111 << 6  # a device, folder, regular file, socket, pipe or link
REFER = 1 << 13  # to move or link a file into another folder; since version 2
TRUNCATE = 1 << 14  # since version 3
TCP = 0b11  # to bind and to connect; since version 4
ABSTRACT_SOCKETS = 1  # Unix sockets without a file; since version 6

READ = EXECUTE | READ_FILE
WRITE = WRITE_FILE | REMOVE_FOLDER | REMOVE_FILE | MAKE_ANY | REFER | TRUNCATE
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE


def _system_call(number: int, *arguments: Any) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))


def _succeed(number: int, *arguments: Any) -> int:
    if (result := _system_call(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), "Landlock failed")
    return result


def version() -> int:
    """Return the kernel's version of Landlock, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(_system_call(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION), 0)


def restrict(allowed: Mapping[str, int], *, network: bool) -> bool:
    """Allow READ, WRITE or both by path, and deny everything else.

    The access to a folder includes everything in it. Paths that do not exist are
    skipped. Never denied: listing a folder, getting a file's size or times, and using
    a file that is already open. Without `network`, TCP (version 4 of Landlock) and the
    abstract Unix sockets of other processes (version 6) are denied if the kernel
    supports that. UDP cannot be. Returns whether the kernel supports Landlock.
    """
    known = version()
    if not known:
        return False
    files = READ | WRITE
    # An older kernel rejects flags that it does not know.
    files &= ~(REFER if known < 2 else 0) & ~(TRUNCATE if known < 3 else 0)
    handled = struct.pack("Q", files)
    if known >= 4:
        handled += struct.pack("Q", 0 if network else TCP)
    if known >= 6:
        handled += struct.pack("Q", 0 if network else ABSTRACT_SOCKETS)
    rules = _succeed(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    try:
        for path, access in allowed.items():
            _add(rules, path, access & files)
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # RESTRICT_SELF needs it
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
            access &= OF_FILES  # the kernel rejects rights that only folders have
        if access:
            rule = struct.pack("=Qi", access, handle)
            _succeed(ADD_RULE, rules, PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)


def except_for(excluded: str, folder: str) -> list[str]:
    """Return paths that together cover a folder except for `excluded`."""
    if not f"{excluded}/".startswith(folder.rstrip("/") + "/"):
        return [folder]
    if excluded == folder:
        return []
    try:
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except OSError:
        return []
    return [path for above in paths for path in except_for(excluded, above)]
