"""The cases: what is done, by which sides, and with a tree of which size."""

from dataclasses import dataclass, replace
from typing import Any, Final, final

from benchmarks.sides import (
    BFLOAT16,
    LAYERS,
    MINILM,
    NAMES,
    OWN,
    PORT,
    RESNET,
    SET,
    SHARDS,
    STOCK,
    TRANSFORMER,
)
from benchmarks.trees import MIB, Spec

_LOADERS: Final = (
    "safejax", "limit", "safetensors.flax", "safetensors.numpy", "Orbax", "Orbax safetensors",
    "flax msgpack", "equinox", "pickle",
)  # fmt: skip
_SAVERS: Final = tuple(side for side in _LOADERS if side != "Orbax safetensors")
_ON_DEVICES: Final = (
    "safejax", "limit", "safetensors.flax", "safetensors.numpy", "Orbax", "Orbax safetensors",
)  # fmt: skip
_CASTERS: Final = ("safejax", "limit", "safetensors.flax", "safetensors.numpy")
_MAIN: Final = ("safejax", "limit", "safetensors.flax", "Orbax")


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One benchmark: a function that the module of every side has.

    `limits` is the function of the limit, if it has another name. `module` is the module of all
    sides of the case, if they do not use their own. `scale` multiplies the size that the user
    chose; `nbytes` replaces it; `count` is the number of tensors. `copied` is the fraction of the
    tree that has to be copied into private memory, `touched` the fraction that is used at all.
    """

    name: str
    title: str
    function: str
    sides: tuple[str, ...]
    limits: str | None = None
    module: str | None = None
    group: str = "main"
    file: str = OWN
    scale: float = 1.0
    nbytes: int | None = None
    count: int | None = None
    devices: int = 1
    layout: str = ""
    cold: bool = False
    copied: float = 0.0
    touched: float = 1.0

    @property
    def file_is_read(self) -> bool:
        """Whether the case needs a file that holds the tree."""
        return self.function not in ("save", "save_cast", "import_module")

    @property
    def disk(self) -> bool:
        """Whether the disk takes part: what is written is flushed, or what is read is cold."""
        return self.cold or self.function in ("save", "save_cast", "convert")

    def spec(self, size: int) -> Spec:
        """The tree, if the user asked for `size` bytes."""
        return Spec(self.nbytes or max(int(size * self.scale), MIB // 4), self.count)


def _on_devices(layout: str, title: str, limits: str, scale: float, copied: float) -> Case:
    return Case(
        layout, f"load onto 8 devices, {title}", "load", _ON_DEVICES, limits, group="devices",
        scale=scale, devices=8, layout=layout, copied=copied,
    )  # fmt: skip


def _through(function: str, title: str, layout: str) -> Case:
    return Case(
        f"through_{function}", f"load bfloat16 onto 8 devices, {title}", function,
        ("safejax", "limit"), module="through", group="devices", file=BFLOAT16, scale=0.25,
        devices=8, layout=layout, copied=1.0,
    )  # fmt: skip


def _opening(count: int) -> Case:
    return Case(
        f"open_{count}", f"open a file of {count:,} tensors", "open_file",
        ("safejax", "safetensors.numpy"), group="open", file=LAYERS, nbytes=count * 256,
        count=count, touched=0.0,
    )  # fmt: skip


def _saving(count: int) -> Case:
    return Case(
        f"save_{count}", f"save {count:,} small tensors, flushed", "save",
        ("safejax", "safetensors.numpy"), group="open", nbytes=count * 256, count=count,
    )  # fmt: skip


def _planning(count: int) -> Case:
    return replace(
        _opening(count), name=f"plan_{count}", title=f"plan a file of {count:,} tensors",
        function="plan_file", sides=("safejax",),
    )  # fmt: skip


def _naming(function: str, title: str) -> Case:
    return Case(
        f"names_{function}", f"20,000 names: {title}", function, ("safejax",), module="naming",
        group="names", file=NAMES, nbytes=20_000 * 256, count=20_000, touched=0.0,
    )  # fmt: skip


def _sized(mib: int, function: str, sides: tuple[str, ...]) -> Case:
    return Case(
        f"{function}_{mib}", f"{function}, {mib} MiB", function, sides, group="scaling",
        nbytes=mib * MIB,
    )  # fmt: skip


def _counted(count: int) -> Case:
    return Case(
        f"load_count_{count}", f"load, {count:,} tensors", "load", _MAIN, group="scaling",
        scale=0.25, count=count,
    )  # fmt: skip


def _first(model: str, of: str, file: str, mib: int) -> Case:
    return Case(
        f"first_{model}", f"from a file of another writer to the first output of {of}", model,
        (
            "safejax", "safejax, lazy", "safejax, materialized", "safetensors.flax",
            "Orbax, restored", "compile and run", "load only",
        ),
        module="models", group="first", file=file, nbytes=mib * MIB, copied=1.0,
    )  # fmt: skip


def _null(kind: str, like: Case) -> Case:
    return replace(
        like, name=NULL[kind], title=f"null run, {kind}: {like.title}, twice", group="null",
        sides=("safejax", "safejax, again"),
    )  # fmt: skip


NULL: Final = {"short": "null_short", "long": "null_long", "disk": "null_disk"}
"""The case of the null run for each kind of time."""


def _cold(name: str, title: str, **fields: Any) -> Case:
    return Case(
        f"cold_{name}", f"cold: {title}", f"cold_{name}", ("safejax", "calls by hand"),
        module="cold", group="cold", cold=True, **fields,
    )  # fmt: skip


NAMING_STEPS: Final = (
    "prefix", "rename", "cast", "transpose", "reshape", "permute", "offset", "stack",
)  # fmt: skip
"""The steps that are applied to many names, each by itself."""

_CASES: Final = (
    _null("short", _opening(1_000)),
    _null("long", Case("", "load a stock file", "load", (), file=STOCK, copied=1.0)),
    _null("disk", Case("", "save, flushed", "save", (), scale=0.5)),
    Case("save", "save, flushed to disk", "save", _SAVERS),
    Case("save_cast", "save float32 as bfloat16, flushed", "save_cast", _MAIN[:3]),
    Case("load", "load own file, ready and touched", "load", _LOADERS),
    Case(
        "place", "load own file, placed only", "place",
        ("safejax", "safetensors.flax", "safetensors.numpy", "Orbax"),
    ),
    Case(
        "stock", "load a stock file, ready and touched", "load",
        ("safejax", "limit", "safetensors.flax", "safetensors.numpy", "Orbax safetensors"),
        "copy", file=STOCK, copied=1.0,
    ),
    Case(
        "load_cast", "load bfloat16 as float32, ready and touched", "load_cast", _CASTERS,
        file=BFLOAT16, copied=1.0,
    ),
    _on_devices("rows", "by rows", "load", 0.5, 0.0),
    _on_devices("columns", "by columns", "strided", 0.5, 1.0),
    _on_devices("mesh", "2 × 4 mesh", "strided", 0.5, 1.0),
    _on_devices("replicated", "replicated", "load", 0.125, 0.0),
    _through("cast", "cast to float32, by columns", "columns"),
    _through("transpose", "transposed, by columns", "columns"),
    _through("stack", "stacked, by columns", "columns"),
    _through("chain", "cast, transposed and stacked, 2 × 4 mesh", "mesh"),
    Case(
        "cold", "load own file, cold, ready and touched", "load",
        (*_MAIN, "flax msgpack", "pickle"), "copy", cold=True,
    ),
    _cold("open", "open 100 files", file=SHARDS, nbytes=100 * MIB, count=100, touched=0.0),
    _cold("row", "open a file, one row as NumPy", touched=0.0),
    _cold("whole", "open a file, one leaf, ready and touched", nbytes=512 * MIB, count=1),
    Case(
        "convert", "convert a file to bfloat16, flushed", "convert",
        ("safejax", "limit", "safetensors.flax"), scale=4.0,
    ),
    Case(
        "set", "load 8 files of another writer onto 8 devices, by rows", "load", ("safejax",),
        group="sets", file=SET, scale=4.0, devices=8, layout="rows", copied=1.0,
    ),
    Case(
        "set_convert", "convert 8 files of another writer to one of bfloat16", "convert",
        ("safejax",), group="sets", file=SET, scale=4.0,
    ),
    Case(
        "port", "port 8 files of another writer, transposed and stacked, onto 8 devices", "port",
        ("safejax", "NumPy by hand", "safetensors.flax", "safetensors.torch"), module="port",
        group="sets", file=PORT, scale=3.0, devices=8, layout="mesh", copied=1.0,
    ),
    Case(
        "first", "from a file of another writer to the first output, compiled", "first_output",
        (
            "safejax", "safejax, lazy", "safejax, materialized", "safetensors.flax",
            "compile and run", "load only",
        ),
        module="first_step", group="first", file=STOCK, copied=1.0,
    ),
    _first("resnet", "ResNet-50", RESNET, 98),
    _first("minilm", "MiniLM", MINILM, 86),
    _first("transformer", "a transformer", TRANSFORMER, 2176),
    *map(_opening, (1_000, 10_000, 100_000)),
    replace(
        _opening(1_000), name="open_1000_large", title="open a file of 1,000 large tensors",
        nbytes=None,
    ),
    _saving(40_000),
    _planning(100_000),
    *(_naming(step, step) for step in NAMING_STEPS),
    _naming("where", "a pattern for each of 16,000"),
    _naming("exact", "a table with a row for each"),
    _naming("chain", "a chain of eight steps"),
    _naming("plan", "the plan of the chain"),
    Case(
        "row", "one row of one leaf as NumPy", "row",
        ("safejax", "numpy.memmap", "numpy.memmap, mapped anew"), group="part", scale=4.0,
        touched=0.0,
    ),
    Case(
        "dispatch", "jit call with 1,000 placed leaves", "dispatch",
        ("safejax", "materialized", "plain arrays"), module="dispatch", group="overhead",
        nbytes=256_000, count=1_000,
    ),
    Case(
        "materialize", "materialize 1,000 leaves of 4 KiB", "materialize",
        ("safejax", "jnp.asarray"), module="dispatch", group="overhead", nbytes=1_000 << 12,
        count=1_000,
    ),
    Case(
        "import", "import, after `import jax`", "import_module",
        ("safejax", "safetensors.flax", "Orbax", "flax msgpack", "equinox"),
        module="importing", group="overhead", nbytes=MIB // 4,
    ),
    *(_sized(mib, "load", _MAIN) for mib in (64, 256, 1024, 4096)),
    *(_sized(mib, "save", _MAIN) for mib in (64, 256, 1024, 4096)),
    *map(_counted, (10, 100, 1_000, 10_000)),
)  # fmt: skip

CASES: Final = {case.name: case for case in _CASES}

ELSEWHERE: Final = {
    "many": ("many_save", "many_load", "many_blocked", "many_steps", "many_on_disk"),
    "far": ("far",),
}
"""The cases of the instruments that are not a function of each side, by group."""

QUICK_NBYTES: Final = 256 * MIB
"""The size of the largest tree of `--quick`, in bytes."""

MOST_NBYTES: Final = 1024 * MIB
"""The size of the largest tree that is measured unless it is asked for, in bytes."""


def named(only: list[str]) -> list[str]:
    """The cases that are named in `only` by themselves or by their groups; all, if it is empty.

    `KeyError` for what is neither a case nor a group.
    """
    groups: dict[str, list[str]] = {group: list(names) for group, names in ELSEWHERE.items()}
    for case in _CASES:
        groups.setdefault(case.group, []).append(case.name)
    known = [*CASES, *(name for names in ELSEWHERE.values() for name in names)]
    for name in only:
        if name not in known and name not in groups:
            raise KeyError(name)
    wanted = {each for name in only for each in groups.get(name, [name])} or set(known)
    return [name for name in known if name in wanted]


def chosen(only: list[str], *, quick: bool, size: int) -> list[Case]:
    """The cases here of those that are named, without large ones if `quick`."""
    return [
        CASES[name]
        for name in named(only)
        if name in CASES and (not quick or CASES[name].spec(size).nbytes <= QUICK_NBYTES)
    ]
