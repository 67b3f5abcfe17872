"""What is wrong with a sharding that was given, and what to give instead."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from safejax._src.leaves.leaf import describe
from safejax._src.leaves.report import SHOWN, pattern_of


def by_reason(faults: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the leaves that have it."""
    names: dict[str, list[str]] = {}
    for name, reason in faults.items():
        names.setdefault(reason, []).append(name)
    return [
        f"leaf {of[0]!r}: {reason}"
        if len(of) == 1
        else f"{len(of)} leaves ({', '.join(map(repr, of[:5]))}{', …' if len(of) > 5 else ''}): "
        f"{reason}"
        for reason, of in names.items()
    ]


def capped(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"… {len(lines) - SHOWN} more"]


def over_no_devices(sharding: Sharding) -> str:
    """What is wrong with a sharding whose mesh is abstract, and what to do."""
    return (
        f"expected a sharding over devices, got {sharding}, whose mesh is abstract: call this "
        "within jax.set_mesh(mesh), or pass sharding=mesh, a mesh of devices with these axes"
    )


def fault_of(name: str, sharding: Sharding, leaf: Any) -> str | None:
    """Why the leaf cannot have the sharding, and what to do; None if it can."""
    shape: tuple[int, ...] = leaf.shape
    expected = f"expected a sharding that divides {describe(leaf)}, got {sharding}"
    if isinstance(sharding, NamedSharding):
        count = len(sharding.spec)
        if count > len(shape):
            return (
                f"{expected}: its spec is for {count} axes: give a PartitionSpec of at most "
                f"{len(shape)} {'entry' if len(shape) == 1 else 'entries'}"
            )
        for axis, entry in enumerate(sharding.spec):
            names = entry if isinstance(entry, tuple) else (entry,)
            parts = math.prod(
                sharding.mesh.shape[each] for each in names if each in sharding.mesh.shape
            )
            if shape[axis] % parts:
                size = -(-shape[axis] // parts) * parts
                return (
                    f"{expected}: {parts} does not divide {shape[axis]}, the size of axis {axis}: "
                    f"pass transform=pad({pattern_of(name)}, axis={axis}, to={size}), or a "
                    "PartitionSpec with None for this axis"
                )
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        return f"{expected}: {str(error).splitlines()[0]}: give another sharding"
    return None


def in_place_of(name: str, item: Any) -> str:
    """What to do about an entry of a sharding tree that no leaf has the name of."""
    spec = item.spec if isinstance(item, NamedSharding) else item
    if isinstance(spec, PartitionSpec) and any(mark in name for mark in "*{"):
        return f"for patterns, pass sharding_rules(mesh, [({name!r}, {spec!r})])"
    return "remove it"


def got(item: Any) -> str:
    """What was given in place of a sharding, and what to give."""
    hint = ""
    if isinstance(item, PartitionSpec):
        hint = (
            ": a PartitionSpec needs its mesh, NamedSharding(mesh, spec): or call this within "
            "jax.set_mesh(mesh)"
        )
    elif isinstance(item, Mesh):
        hint = ": a mesh needs a spec, NamedSharding(mesh, PartitionSpec(...))"
    elif hasattr(item, "layout") and isinstance(getattr(item, "sharding", None), Sharding):
        hint = ": give its sharding, and call jax.device_put(leaf, format) on what is loaded"
    elif isinstance(item, dict):
        hint = ": rules need their mesh, sharding_rules(mesh, rules.items())"
    return f", got {item!r:.200}{hint}"
