"""Compiled kernels on disk: a folder of our own, one file for each key, written whole or not at all.

A file is taken only if it lies in a folder that nobody else can write to or put another in the place of, is the user's
own, and carries the digest of its content: machine code from it is run. SECURITY.md says what that is worth.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

import filelock

from . import env

_log = logging.getLogger(__name__)
_MAGIC = b"bnb-intel-kernels-1\n"
_LOCK_SECONDS = 60


class Untrusted(OSError):
    """The cache folder, or a file in it, could have been written by somebody else."""


def private_folder(name: str) -> pathlib.Path:
    """A folder of this name in the cache; made if need be, for the user alone.

    Raises:
        OSError: it cannot be made.
        Untrusted: it is not the user's own, or others can write to it, or to a folder above it.
    """
    path = env.cache_dir() / name
    for missing in [each for each in (path, *path.parents) if not each.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)
    check_trusted(path)
    _check_parents(path)
    return path


def folder() -> pathlib.Path:
    """The folder of compiled kernels, see :func:`private_folder`."""
    return private_folder("kernels")


def check_trusted(path: pathlib.Path) -> None:
    """Raise Untrusted unless a file or folder is the user's own, no link, and nobody else can write to it."""
    _check_status(path, path.lstat())


def _check_status(path: pathlib.Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise Untrusted(f"{path} is a symbolic link")
    if status.st_uid != os.geteuid():
        raise Untrusted(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Untrusted(f"{path} is writable by others (mode {stat.S_IMODE(status.st_mode):o})")


def _check_parents(path: pathlib.Path) -> None:
    """Raise Untrusted if somebody else could rename a folder above this one and put his own in its place.

    A sticky folder (/tmp) lets nobody do that; in the user's own group, users whose umask is 002 are alone.
    """
    for parent in dict.fromkeys([*path.parents, *path.resolve().parents]):
        status = parent.lstat()
        if status.st_uid not in (0, os.geteuid()):
            raise Untrusted(f"{parent}, above the cache, belongs to user {status.st_uid}")
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX:
            continue
        others = stat.S_IWOTH | (0 if status.st_gid == os.getegid() else stat.S_IWGRP)
        if status.st_mode & others:
            raise Untrusted(f"{parent}, above the cache, is writable by others (mode {stat.S_IMODE(status.st_mode):o})")


def _content(path: pathlib.Path) -> bytes:
    """The bytes of a trusted file: what is checked is what is read, whatever becomes of the name in between."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted(f"{path} is no regular file")
        _check_status(path, status)
        return file.read()


def _path(key: str) -> pathlib.Path:
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.bin"


def read(key: str) -> bytes | None:
    """What :func:`write` kept under this key; None if there is nothing, or nothing whole.

    Raises:
        OSError: it cannot be read.
        Untrusted: somebody else could have written it.
    """
    path = _path(key)
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # what O_NOFOLLOW makes of a link
            raise Untrusted(f"{path} is a symbolic link") from None
        raise
    digest = content[len(_MAGIC) : len(_MAGIC) + 32]
    payload = content[len(_MAGIC) + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(key.encode() + payload).digest() != digest:
        _log.warning("ignoring %s: it is truncated or not a file of compiled kernels", path)
        return None
    return payload


def write(key: str, payload: bytes) -> pathlib.Path:
    """Keep a payload under a key. Readers see the old file or the new one, never a part."""
    path = _path(key)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(key.encode() + payload).digest() + payload)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def remove(key: str) -> None:
    """Forget a key."""
    _path(key).unlink(missing_ok=True)


@contextlib.contextmanager
def building(key: str) -> Iterator[None]:
    """Hold while building a key, so that of many processes one builds and the others find the result.

    A lock that is not had in a minute is done without: building twice is no error.
    """
    lock = filelock.FileLock(_path(key).with_suffix(".lock"))
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except filelock.Timeout:
        _log.warning("not waiting any longer for %s", lock.lock_file)
    try:
        yield
    finally:
        lock.release()
