"""Placing: a view's values onto the devices of a sharding, always concrete.

One block is read for each *distinct* index that this process's devices hold; replicas share
it, and what no device here holds is never read. Blocks that look at a mapped file are handed
to the device as they are, and XLA's CPU client uses them in place where they are aligned.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from safejax.dtypes import Dtype
from safejax.errors import PrecisionError
from safejax.views import View

_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Placement:
    """Where a leaf goes; not committed means: JAX may move it to meet other arrays."""

    sharding: Sharding
    committed: bool


def default_placement() -> Placement:
    """JAX's default device as it is now, uncommitted."""
    device = cast("Any", jax.config).jax_default_device
    if device is None:
        device = jax.local_devices()[0]
    elif isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return Placement(SingleDeviceSharding(device), committed=False)


def place(
    view: View, dtype: Dtype, key_impl: str | None, placement: Placement, name: str
) -> jax.Array:
    """The view's values on the devices of `placement`, as `dtype`.

    With `key_impl` the view is a key's data, uint32 with the key's own axes last, and a typed
    key array comes back.

    Raises `PrecisionError` where a narrower integer `dtype` cannot hold a value.
    """
    sharding = placement.sharding
    if key_impl is not None:
        of_data = Placement(_of_key_data(sharding, _key_axes(key_impl)), placement.committed)
        data = place(view, dtype, None, of_data, name)
        return jax.random.wrap_key_data(data, impl=key_impl)
    if not placement.committed:
        (device,) = sharding.device_set
        with jax.default_device(device):
            return jax.device_put(_block(view, dtype, name))
    if len(sharding.device_set) == 1 and sharding.is_fully_addressable:
        return jax.device_put(_block(view, dtype, name), sharding)
    blocks: dict[tuple[Any, ...], NDArray[Any]] = {}
    arrays: list[jax.Array] = []
    indices = cast(
        "dict[Any, tuple[slice, ...]]",
        sharding.addressable_devices_indices_map(view.shape),
    )
    # Behind a barrier every block needs the whole operand, which is made once for all.
    with view.kept():
        for device, index in indices.items():
            distinct = tuple((part.start, part.stop) for part in index)
            if distinct not in blocks:
                blocks[distinct] = _block(view.index(index), dtype, name)
            single = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            arrays.append(jax.device_put(blocks[distinct], single))
    # The dtype, since there may be no device of this process among them.
    return jax.make_array_from_single_device_arrays(view.shape, sharding, arrays, dtype=dtype)


def _of_key_data(sharding: Sharding, key_axes: int) -> Sharding:
    """The sharding of the data of keys, whose own axes, the last ones, are not split."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = PartitionSpec(*sharding.spec, *(None,) * key_axes)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _key_axes(key_impl: str) -> int:
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key_impl)))
    return len(key.shape)


def _block(view: View, dtype: Dtype, name: str) -> NDArray[Any]:
    """What a device is given: of `dtype`, aligned for it, and changed by nobody."""
    block = view.read()
    if block.dtype != dtype:
        return _narrowed(block, dtype, name)
    lasting = block.flags.writeable or view.stable
    return block if lasting and block.flags.aligned else block.copy()


def _narrowed(block: NDArray[Any], dtype: Dtype, name: str) -> NDArray[Any]:
    """The block in the narrower dtype that JAX uses while x64 is off."""
    if dtype.kind in "iu" and block.size:
        limits = np.iinfo(dtype)
        low, high = int(block.min()), int(block.max())
        if low < limits.min or high > limits.max:
            outside = low if low < limits.min else high
            raise PrecisionError(
                f"leaf {name!r}: expected values that {dtype} holds, since JAX's x64 mode is "
                f"off, got {outside} in a leaf of {block.dtype}: turn it on with "
                "jax.config.update('jax_enable_x64', True), or take numpy.asarray(leaf), which "
                "has all bits"
            )
    with np.errstate(all="ignore"):
        return block.astype(dtype)


# ---- concretely, whatever the caller is in the middle of


_WIDE: Final = frozenset({"int64", "uint64", "float64", "complex128"})


def concretely(task: Callable[[], _T], dtype: Dtype | None = None) -> _T:
    """What `task` gives when it runs outside of any trace and any of JAX's debug modes.

    It runs in a thread of its own: JAX's trace, its guards and its modes belong to the thread,
    and nothing less than another one leaves them all behind. `dtype` is that of the arrays
    that the task makes; 64-bit ones need x64 whatever the mode has become since.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _plain_settings(dtype):
                outcome.append(task())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it belongs
            failure.append(error)

    thread = threading.Thread(target=run, name="safejax-place", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def concretely_all(tasks: Sequence[tuple[Callable[[], object], Dtype]], workers: int) -> None:
    """Run each task as `concretely` does, `workers` at a time; the first failure is raised."""
    pending = iter(tasks)
    pending_lock = threading.Lock()

    def work() -> None:
        while True:
            with pending_lock:
                item = next(pending, None)
            if item is None:
                return
            task, dtype = item
            try:
                with _plain_settings(dtype):
                    task()
            except BaseException:
                with pending_lock:
                    for _ in pending:
                        pass
                raise

    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it belongs
            failures.append(error)

    threads = [
        threading.Thread(target=run, name=f"safejax-place-{number}", daemon=True)
        for number in range(min(workers, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _plain_settings(dtype: Dtype | None) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.transfer_guard("allow"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.disable_jit(False))
        if dtype is not None and dtype.name in _WIDE:
            stack.enter_context(jax.enable_x64(True))
        yield
