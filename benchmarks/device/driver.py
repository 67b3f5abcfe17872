"""NVIDIA's driver, by `ctypes`: the rate of a copy from page-locked memory, without any library."""

import ctypes
import time
from typing import Any, Final

_NON_BLOCKING: Final = 1
"""`CU_STREAM_NON_BLOCKING` of the driver's interface."""


def link_seconds(nbytes: int, times: int) -> float:
    """Seconds in which `nbytes` of page-locked memory are copied to the first GPU, `times` times.

    Raises `OSError` if there is no driver, and `RuntimeError` with the number of its error.
    """
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        error = getattr(driver, name)(*arguments)
        if error:
            raise RuntimeError(f"{name}: error {error} of the driver")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    host, there, stream = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p()
    size = ctypes.c_size_t(nbytes)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    # The context that XLA has, too.
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxPushCurrent_v2", context)
    try:
        call("cuMemHostAlloc", ctypes.byref(host), size, 0)
        call("cuMemAlloc_v2", ctypes.byref(there), size)
        call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        seconds: list[float] = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(times):
                call("cuMemcpyHtoDAsync_v2", there, host, size, stream)
            call("cuStreamSynchronize", stream)
            seconds.append(time.perf_counter() - begin)
        return min(seconds)
    finally:
        if stream:
            call("cuStreamDestroy_v2", stream)
        if there:
            call("cuMemFree_v2", there)
        if host:
            call("cuMemFreeHost", host)
        call("cuCtxPopCurrent_v2", ctypes.byref(context))
        call("cuDevicePrimaryCtxRelease_v2", device)
