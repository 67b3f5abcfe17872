"""Mapping: a file's bytes as memory, without a descriptor that stays open for it.

A process may have a few hundred files open, and a checkpoint as many shards. Python's `mmap`
keeps a descriptor of its own; from Python 3.13 on, it can be opened without one.
Before that, the system is called here.
"""

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

_FAILED: Final = ctypes.c_void_p(-1).value


def map_file(descriptor: int, nbytes: int) -> NDArray[np.uint8]:
    """The first `nbytes` bytes of an open file, one or more; read-only.

    They stay mapped as long as an array uses them, whether or not the descriptor is closed.
    """
    if sys.platform == "win32":
        memory = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
    elif sys.version_info >= (3, 13):
        memory = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ, trackfd=False)
    else:
        return np.asarray(_Mapped(descriptor, nbytes))
    return np.frombuffer(memory, np.uint8)


@final
class _Mapped:
    """Mapped memory, as what NumPy makes an array of that keeps it alive."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        call, unmap = _system_calls()
        address = call(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        # Arrays may be used until the process has ended.
        weakref.finalize(self, unmap, address, nbytes).atexit = False
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # read-only
            "shape": (nbytes,),
            "typestr": "|u1",
        }


@cache
def _system_calls() -> tuple[Any, Any]:
    """`mmap` and `munmap`."""
    library = ctypes.CDLL(None, use_errno=True)
    call, unmap = library.mmap, library.munmap
    call.restype = ctypes.c_void_p
    call.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return call, unmap
