"""Orbax's new interface, `orbax.checkpoint.experimental.v1`: a handler and a registry for it.

    with safejax.orbax_v1.context("state"), ocp.training.Checkpointer(folder) as checkpointer:
        checkpointer.save_checkpointables(step, {"state": state})
        state = checkpointer.load_checkpointables(step, {"state": like})["state"]

Orbax calls that interface experimental, and changes its names from version to version. This module
follows the newest version; `safejax.orbax`, for Orbax's classic interface, does not change.
"""

import asyncio
import inspect
import os
from collections.abc import Awaitable
from typing import Any

from safejax._src.adapter import explain_missing
from safejax.orbax import Handler as ClassicHandler
from safejax.orbax import Restore, Save, hold_item

try:
    import orbax.checkpoint.experimental.v1 as ocp
except ModuleNotFoundError as error:
    explain_missing(
        error, "orbax", dict.fromkeys(("orbax", "orbax.checkpoint"), "orbax-checkpoint")
    )
    raise

__all__ = ["Handler", "context", "registry"]


class Handler:
    """Stores a checkpointable, which is a pytree, as `model.safetensors`, and loads it lazily.

    It is what `safejax.orbax.Handler` is, for `save_checkpointables` and `load_checkpointables`. A
    checkpointable may also be a `safejax.orbax.Save`, and an abstract one a
    `safejax.orbax.Restore`, which say how it is saved and loaded.
    """

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Hold the values; what is returned writes them, once the folder is there."""
        args = checkpointable if isinstance(checkpointable, Save) else Save(checkpointable)
        held = hold_item(os.fspath(directory.path), args)

        async def commit() -> None:
            await directory.await_creation()
            if held is not None:
                await asyncio.to_thread(held.write)

        return commit()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """What is in a folder, with lazy leaves, as `abstract_checkpointable` is."""
        args = abstract_checkpointable
        args = args if isinstance(args, Restore) else Restore(args)
        tree = ClassicHandler().restore(
            directory, args
        )  # It is lazy: there is nothing to wait for.

        async def loaded() -> Any:
            return tree

        return loaded()

    async def metadata(self, directory: Any) -> Any:
        """The tree, with a `jax.ShapeDtypeStruct` in place of each array."""
        return ClassicHandler().metadata(directory)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it can be saved: `save` says for which leaves it cannot."""
        return checkpointable is not None

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool:
        """Whether it can be loaded like this: `load` says for which leaves it cannot."""
        del abstract_checkpointable
        return True


def registry(*names: str) -> Any:
    """Orbax's own handlers, and `Handler` for the checkpointables of these names, or for all.

    For `ocp.Context().checkpointables.registry`, as `context` has it.
    """
    made = ocp.handlers.local_registry(include_global_registry=False)
    known = ocp.handlers.global_registry()
    # Names of parameters change from version to version; the last one came later.
    _, named, *later = inspect.signature(made.add).parameters
    for handler, name in known.get_all_entries():
        if name not in names:
            others: dict[str, Any] = {each: known.get_secondary_typestrs(handler) for each in later}
            made.add(handler, **{named: name}, **others)
    for name in names or (None,):
        made.add(Handler, **{named: name})
    return made


def context(*names: str) -> Any:
    """An `ocp.Context` with `registry(*names)`; its other options can be set as in any other.

    What saves and loads in a `with` block of it uses `Handler` for the checkpointables of these
    names, or for all.
    """
    made: Any = ocp.Context()
    if hasattr(made, "checkpointables"):
        made.checkpointables.registry = registry(*names)
        return made
    # Orbax 0.11 has options that are given when a context is made.
    options = ocp.options.CheckpointablesOptions(registry=registry(*names))
    return ocp.Context(checkpointables_options=options)
