"""The sides: one module each, imported only in a child, with imports of what it needs.

A side takes part in a case by having the function that the case names: given a `Job`, it
prepares and returns the `Work` that is timed. `write(job)` makes the file at `job.path`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final, Literal, final

OWN: Final = "own.safetensors"
STOCK: Final = "stock.safetensors"
BFLOAT16: Final = "bfloat16.safetensors"
LAYERS: Final = "layers.safetensors"
SET: Final = "set"
PORT: Final = "port"
NAMES: Final = "names.safetensors"
SHARDS: Final = "shards"
RESNET: Final = "resnet.safetensors"
MINILM: Final = "minilm.safetensors"
TRANSFORMER: Final = "transformer.safetensors"


@final
@dataclass(frozen=True, slots=True)
class Side:
    """A side: its name in tables, its module, and the distributions that it requires.

    `file` is the file in a format that only this side reads; with None, it reads the case's
    safetensors file. `memory` is the private memory that it needs, as a multiple of the tree.
    `counts` says how the bytes that it reads are counted: as it requests them, as it reads them
    by system calls, or not at all.
    """

    name: str
    module: str
    requires: tuple[str, ...] = ()
    file: str | None = None
    memory: float = 2.25
    counts: Literal["requests", "calls", "unknown"] = "unknown"

    @property
    def missing(self) -> tuple[str, ...]:
        """The required distributions that are not installed."""
        return tuple(missing(self.requires))


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the distributions that are not installed."""
    return [package for package in packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


SIDES: Final = {
    side.name: side
    for side in (
        Side("safejax", "ours", memory=1.25, counts="requests"),
        Side("safejax, again", "ours", memory=1.25, counts="requests"),
        Side("limit", "limit", memory=1.25),
        Side("safetensors.flax", "safetensors_flax"),
        Side("safetensors.numpy", "safetensors_numpy"),
        Side("Orbax", "orbax", ("orbax-checkpoint",), "tree.orbax", counts="calls"),
        Side("Orbax safetensors", "orbax_safetensors", ("orbax-checkpoint",), counts="calls"),
        Side("flax msgpack", "flax_msgpack", ("flax",), "tree.msgpack", 3.25, "calls"),
        Side("equinox", "equinox", ("equinox",), "tree.eqx", counts="calls"),
        Side("pickle", "pickled", (), "tree.pickle", 3.25, "calls"),
        Side("numpy.memmap", "memmap"),
        Side("numpy.memmap, mapped anew", "memmap"),
        Side("plain arrays", "dispatch"),
        Side("materialized", "dispatch"),
        Side("jnp.asarray", "dispatch"),
        Side("NumPy by hand", "port"),
        Side("safetensors.torch", "port", ("torch",)),
        Side("safejax, lazy", "first_step"),
        Side("safejax, materialized", "first_step"),
        Side("calls by hand", "cold"),
        Side("compile and run", "first_step"),
        Side("load only", "first_step"),
        Side("Orbax, restored", "models", ("orbax-checkpoint",)),
    )
}

WRITERS: Final = {
    OWN: ("ours", "write"),
    BFLOAT16: ("ours", "write_bfloat16"),
    LAYERS: ("ours", "write_layers"),
    STOCK: ("safetensors_numpy", "write"),
    SET: ("safetensors_numpy", "write_set"),
    PORT: ("port", "write"),
    NAMES: ("naming", "write"),
    SHARDS: ("cold", "write_shards"),
    RESNET: ("models", "write_resnet"),
    MINILM: ("models", "write_minilm"),
    TRANSFORMER: ("models", "write_transformer"),
    **{side.file: (side.module, "write") for side in SIDES.values() if side.file is not None},
}
"""The module and function that write each kind of file."""
