"""The checks: on the devices, a lazy leaf does what a plain array does, with the same bits."""

import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import safejax
from safejax._src.arrays.device_casts import cast_on_device
from safejax._src.arrays.pinned import can_stage
from safejax._src.arrays.staging import Sizes, forced
from safejax._src.leaves.leaf import content_of
from safejax._src.reading.pointwise import cast_view
from safejax.testing import assert_same_bits

Check = tuple[str, Callable[[], None]]

_RNG: Final = np.random.default_rng(0)
_HOST: Final[dict[str, Any]] = {
    "w": _RNG.standard_normal((256, 128)).astype(np.float32),
    "bf16": _RNG.standard_normal((64, 32)).astype(ml_dtypes.bfloat16),
    "f16": _RNG.standard_normal((64, 32)).astype(np.float16),
    "f8": _RNG.standard_normal((64, 32)).astype(ml_dtypes.float8_e4m3fn),
    "i8": _RNG.integers(-128, 128, (64, 32), np.int8),
    "i32": np.arange(7, dtype=np.int32),
    "mask": _RNG.random((64, 32)) > 0.5,
    "c64": (_RNG.standard_normal((8, 8)) + 1j).astype(np.complex64),
    "scalar": np.float32(2.5),
}


def run(found: dict[str, str]) -> None:
    """Run all checks; `found` says of each "ok", or what went wrong."""
    for name, check in _checks():
        try:
            check()
            found[name] = "ok"
        except Exception as error:  # noqa: BLE001 - each is reported, and the others go on
            found[name] = f"{type(error).__name__}: {str(error)[:300]}"
            traceback.print_exc(limit=-3)
        print(f"{found[name]:8}  {name}", flush=True)


def _checks() -> Iterator[Check]:
    for name, function in _FUNCTIONS.items():
        yield name, lambda function=function: _same(function)
    for name in _HOST:
        yield f"{name} is placed as it is", lambda name=name: _placed(name)
        yield f"{name} is staged as it is", lambda name=name: _staged(name)
    yield from _OTHERS.items()


# ---- functions of arrays, plain and lazy


def _plain() -> dict[str, Any]:
    return {name: jnp.asarray(array) for name, array in _HOST.items()}


def _lazy(**options: Any) -> dict[str, Any]:
    return safejax.deserialize(safejax.serialize(_HOST), **options)


def _same(function: Callable[[dict[str, Any]], Any]) -> None:
    lazy, plain = jax.tree.leaves(function(_lazy())), jax.tree.leaves(function(_plain()))
    for mine, theirs in zip(lazy, plain, strict=True):
        assert mine.devices() == theirs.devices(), (mine.devices(), theirs.devices())
        assert_same_bits(mine, theirs)


_FUNCTIONS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "jit": jax.jit(lambda tree: tree["w"] @ tree["w"].T),
    "grad": lambda tree: jax.grad(lambda w: (w**2).sum())(tree["w"]),
    "vmap": lambda tree: jax.vmap(jnp.sum)(tree["w"]),
    "scan": lambda tree: jax.lax.scan(
        lambda carry, row: (carry + row, row * 2), jnp.zeros(128), tree["w"]
    ),
    "closed over in jit": lambda tree: jax.jit(lambda x: x + tree["w"])(jnp.float32(1)),
    "indexed": lambda tree: tree["w"][3:9, ::2] + 0,
    "bfloat16 arithmetic": lambda tree: tree["bf16"] * 2,
    "a tree map": lambda tree: jax.tree.map(jnp.copy, tree),
    "device_put": lambda tree: jax.device_put(tree["w"], jax.devices()[-1]),
}


# ---- dtypes


def _placed(name: str) -> None:
    with forced(False):
        placed = safejax.materialize(_lazy())[name]
    assert placed.devices() == {jax.devices()[0]}
    assert_same_bits(placed, _HOST[name])


def _staged(name: str) -> None:
    with forced(True, Sizes(least=1)):
        assert_same_bits(safejax.materialize(_lazy())[name], _HOST[name])


# ---- others


def _nothing_is_placed() -> None:
    tree = _lazy()
    jax.jit(lambda tree: tree["w"].sum()).lower(tree).compile()
    assert not any(leaf.is_placed for leaf in tree.values())
    assert np.asarray(tree["w"]).tobytes() == _HOST["w"].tobytes()
    assert not tree["w"].is_placed


def _page_locked_memory() -> None:
    device = jax.devices()[0]
    assert can_stage(device), "what is written to page-locked memory is not what the device copies"


def _in_pieces() -> None:
    with forced(True, Sizes(least=1, piece=1 << 10, part=256, ring=8 << 10)):
        tree = safejax.materialize(_lazy())
    for name, array in _HOST.items():
        assert_same_bits(tree[name], array)


def _casts_on_the_device() -> None:
    for name, target in (("bf16", np.dtype(np.float32)), ("w", np.dtype(ml_dtypes.bfloat16))):
        content = content_of(_HOST[name])
        assert content is not None
        view = cast_view(content.view, target)
        assert cast_on_device(view, jax.devices()[0]) is not None, f"other bits than NumPy: {name}"
        with forced(True, Sizes(least=1)):
            tree = safejax.materialize(_lazy(transform=safejax.cast(target, where=name)))
        assert_same_bits(tree[name], view.read())


def _on_a_mesh() -> None:
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    for spec in (PartitionSpec(), PartitionSpec("x")):
        there = NamedSharding(mesh, spec)
        for way in (False, True):
            with forced(way, Sizes(least=1)):
                tree = _lazy(sharding=there, transform=safejax.select("w"))
                placed = safejax.materialize(tree)["w"]
            assert_same_bits(placed, jax.device_put(_HOST["w"], there))
            jax.block_until_ready(placed)


def _in_memory_of_the_host() -> None:
    there = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    leaf = _lazy(sharding=there, transform=safejax.select("w"))["w"]
    assert leaf.sharding.memory_kind == "pinned_host"
    back = jax.device_put(leaf, SingleDeviceSharding(jax.devices()[0]))
    assert_same_bits(back, jnp.asarray(_HOST["w"]))


def _between_devices() -> None:
    cpu = jax.devices("cpu")[0]
    assert jax.device_put(_lazy()["w"], cpu).devices() == {cpu}
    back = jax.device_put(_lazy(sharding=cpu)["w"], jax.devices()[0])
    assert_same_bits(back, jnp.asarray(_HOST["w"]))


def _donated() -> None:
    tree = _lazy()
    jax.block_until_ready(jax.jit(lambda w: w + 1, donate_argnums=0)(tree["w"]))
    assert np.asarray(tree["w"]).tobytes() == _HOST["w"].tobytes()


def _keys() -> None:
    key = jax.random.key(3)
    lazy = safejax.deserialize(safejax.serialize({"key": key}))["key"]
    assert_same_bits(jax.random.normal(lazy, (5,)), jax.random.normal(key, (5,)))


def _saved_from_the_device() -> None:
    tree = _plain()
    with forced(False):
        expected = safejax.serialize(tree)
    with forced(True):
        assert safejax.serialize(tree) == expected


def _many_threads() -> None:
    leaf = _lazy()["w"]
    sums: list[jax.Array] = []
    threads = [threading.Thread(target=lambda: sums.append(leaf.sum())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({float(each) for each in sums}) == 1
    assert len(sums) == 8


_OTHERS: Final[dict[str, Callable[[], None]]] = {
    "nothing is placed before it is needed": _nothing_is_placed,
    "page-locked memory can be written to": _page_locked_memory,
    "in pieces, by a small ring": _in_pieces,
    "casts on the device have NumPy's bits": _casts_on_the_device,
    "on a mesh of all devices": _on_a_mesh,
    "in page-locked memory": _in_memory_of_the_host,
    "to the CPU and from there": _between_devices,
    "donated, and used again": _donated,
    "typed keys": _keys,
    "saved from the device": _saved_from_the_device,
    "eight threads need one leaf": _many_threads,
}
