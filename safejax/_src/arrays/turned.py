"""Turned: what is stored with its axes in another order is brought into its own by the device.

XLA's CPU client transposes several times as fast as NumPy. But memory that it allocates for a
large block is faulted in page by page, which takes longer than the transposition itself. So it is
given pieces, for which it uses the same memory again, and these are copied to where they belong.
"""

from typing import Any

import numpy as np
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from safejax._src.arrays.jax_private import array_of_blocks
from safejax._src.reading.memory import Allocator, aligned_empty
from safejax._src.reading.order import (
    PIECE_BYTES,
    is_worth_pieces,
    order_of_reading,
    pieces,
    read_in_order,
)
from safejax._src.reading.view import Strided, View


def read_for(device: Any, view: View, empty: Allocator) -> NDArray[Any]:
    """What `read` returns, in memory of `empty`, which `device` may be given.

    The axes of what comes back may be permuted in memory.
    """
    order = order_of_reading(view)
    if order is None or device.platform != "cpu" or not is_worth_pieces(view):
        return read_in_order(view, order, empty)
    values = empty(view.shape, view.dtype)
    stored, places = view.transpose(order), values.transpose(order)
    back = [order.index(axis) for axis in range(len(order))]
    sharding = SingleDeviceSharding(device)
    memory: NDArray[np.uint8] | None = None
    # Behind a barrier every piece needs the whole operand, which is made once for all.
    with stored.kept():
        for piece in pieces(stored.shape, view.dtype.itemsize, order):
            part = stored.index(piece)
            if isinstance(part, Strided):
                runs = part.read()  # In memory: it is not copied.
            else:
                memory = (
                    aligned_empty((PIECE_BYTES,), np.dtype(np.uint8)) if memory is None else memory
                )
                runs = memory[: part.nbytes].view(part.dtype).reshape(part.shape)
                part.read_into(runs)
            runs = runs.transpose(back)
            turned = array_of_blocks(
                runs.shape, view.dtype, sharding, {device: runs}, committed=True
            )
            places[piece] = np.asarray(turned).transpose(order)
    return values
