"""Recipes: the table of a family of models, made of its `config.json` and the names it has."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from jax.sharding import Mesh

from safejax._src.checkpoint.opening import open_path
from safejax._src.format import strict_json
from safejax._src.leaves.rules import ShardingRules
from safejax._src.leaves.steps import Transform, chain
from safejax._src.public import set_module
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.recipes.blocks import Rows
from safejax._src.recipes.config import Config
from safejax._src.recipes.families import FAMILIES
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax._src.transforms.correspond import Correspondence, MeshAxes, correspond
from safejax._src.transforms.correspondence.rows import Name
from safejax._src.transforms.rename import rename
from safejax.errors import InvalidFileError, TransformError

_CONFIG = "config.json"


@set_module("safejax.recipes")
@final
@dataclass(frozen=True, slots=True, repr=False)
class Recipe:
    """How the checkpoint of a model becomes a tree of JAX parameters, and back.

    `transform` is for `load(path, transform=...)`; its inverse exports. It is `table`, a table of
    correspondences, behind a `rename` where some families need one. `model_type` is the family, as
    the configuration says. `str` shows the whole table.
    """

    model_type: str
    transform: Transform
    table: Correspondence

    @property
    def axes(self) -> dict[str, int | None]:
        """The names of the axes, with their sizes as far as the configuration gives them."""
        sizes = dict(self.table.sizes)
        return {name: sizes.get(name) for name in self.table.axes}

    def rules(self, mesh: Mesh, axes: Mapping[str, MeshAxes]) -> ShardingRules:
        """The sharding rules for the tree, by the names of its axes.

        `axes` maps some of `self.axes` to axes of the mesh: `{"heads": "model", "mlp": "model"}`.
        All others are replicated.

        Raises `ShardingError` for a name that is not one of `self.axes`, and for an axis of the
        mesh that a leaf would have twice.
        """
        return self.table.sharding_rules(mesh, axes)

    def __repr__(self) -> str:
        axes = ", ".join(
            name if size is None else f"{name}={size}" for name, size in self.axes.items()
        )
        return f"<recipe for {self.model_type!r}: {len(self.table.rows)} rows; axes {axes}>"

    def __str__(self) -> str:
        rows = [tuple(map(_shown, row.written)) for row in self.table.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [
            f"{theirs:{widths[0]}}  {ours:{widths[1]}}  {''.join(axes)}".rstrip()
            for theirs, ours, *axes in rows
        ]
        return "\n".join([repr(self), *lines])


def _shown(written: object) -> str:
    if isinstance(written, tuple):
        return ", ".join(cast("tuple[str, ...]", written))
    return "-" if written is None else str(written)


@set_module("safejax.recipes")
def of(
    source: PathLike | Mapping[str, Any],
    *,
    names: Collection[str] | None = None,
    fs: FileSystem = None,
) -> Recipe:
    """The recipe for a checkpoint of Hugging Face's: its `config.json` says which family it is of.

    `source` is the folder of the checkpoint, a file or an index in it, or a URL of one of them,
    also on the file system `fs`. The configuration and the names of the tensors are read, and
    no tensor is. It may also be the parsed configuration; the names are then `names`, for example
    the leaves of `flatten(load(path))`. Without them, a table for all that models of the family
    may have is made, with the names of a whole model.

    >>> from safejax import recipes
    >>> recipe = recipes.of({
    ...     "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4,
    ...     "hidden_size": 8, "tie_word_embeddings": True,
    ... })
    >>> recipe.model_type, recipe.axes["heads"]
    ('llama', 4)

    Then: `load(path, transform=recipe.transform, sharding=recipe.rules(mesh, {"heads": "model"}))`.

    Raises `TransformError` for a family without a recipe, which names those that have one, and for
    a configuration that the recipe cannot be made of; `InvalidFileError` for a `config.json` that
    is not a JSON object; `FileNotFoundError`, and what `load` raises for a file that cannot be
    opened.
    """
    if isinstance(source, Mapping):
        values, where = source, "config"
    else:
        values, where = _read(source, fs)
        if names is None:
            names = open_path(source, fs).keys()
    names = None if names is None else frozenset(names)
    config = Config(values, where, names)
    model_type = config.text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise TransformError(
            f"{where}: expected a model_type that has a recipe, {', '.join(FAMILIES)}, got "
            f"{model_type!r}: write a table for it with safejax.correspond"
        )
    rows, sizes, renamed = family(config)
    table = correspond(_there(rows, names), sizes=sizes)
    return Recipe(model_type, chain(rename(renamed), table) if renamed else table, table)


def _read(path: PathLike, fs: FileSystem) -> tuple[dict[str, Any], str]:
    """The configuration of the checkpoint at a path, and where it is."""
    store, place = locate(checked_path(path), fs)
    folder = place if store.is_folder(place) else store.parent(place)
    file = store.join(folder, _CONFIG)
    where = masked(file)
    try:
        # Some have infinities.
        values = strict_json.parse(store.read(file).decode(), allow_constants=True)
    except FileNotFoundError as error:
        error.add_note(
            f"recipes.of: expected the configuration of a checkpoint in {where}: without it, give "
            "its values, recipes.of({'model_type': ..., ...})"
        )
        raise
    except ValueError as error:
        raise InvalidFileError(f"{where}: expected a JSON object, got {error}") from error
    if not isinstance(values, dict):
        raise InvalidFileError(f"{where}: expected a JSON object, got {values!r:.80}")
    return cast("dict[str, Any]", values), where


def _there(rows: Rows, names: Iterable[str] | None) -> Rows:
    """The rows without those that may be missing and are: nothing is optional any more."""
    if names is None:
        return rows
    kept: Rows = []
    for theirs, *rest in rows:
        if isinstance(theirs, str) and theirs.endswith("?"):
            theirs = theirs[:-1]
            match = Name.parse(theirs).matcher(frozenset())
            if all(match(name) is None for name in names):
                continue
        kept.append((theirs, *rest))  # pyright: ignore[reportArgumentType]
    return kept
