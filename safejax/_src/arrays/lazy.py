"""The lazy leaf: a JAX array, as far as JAX and its users can see, that reads when it must.

What a leaf is (shape, dtype, sharding, aval) is known when it is made. Its values are read and
placed on its devices at the first use that needs them; the placed array is kept, and made
again if it was donated away. Everything that this class does not answer itself, it hands to
the placed array. This file is long, since one class must have all that a JAX array has.
"""

import math
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, cast, final

import jax
import numpy as np
from jax.experimental.layout import Format
from jax.sharding import Sharding
from numpy.typing import NDArray

from safejax._src.arrays import jax_hooks, jax_private
from safejax._src.arrays.at_once import place_at_once
from safejax._src.arrays.content import Content, key_array_type, key_dtype
from safejax._src.arrays.families import Family, Rows
from safejax._src.arrays.forwarding import hand_on, with_placed
from safejax._src.arrays.indexing import basic_index, placement_of_part
from safejax._src.arrays.jax_private import abstract_value
from safejax._src.arrays.placing import (
    Job,
    Placed,
    Placement,
    default_placement,
    is_worth_a_thread,
    place,
    place_many,
)
from safejax._src.arrays.precision import NarrowingNotice, narrowed, remember_stored
from safejax._src.arrays.untraced import run_untraced
from safejax._src.dtypes import Dtype
from safejax._src.public import set_module
from safejax._src.reading.windows import BasicIndex
from safejax._src.system import AtWork
from safejax.errors import UnsupportedJaxError

_CONFIG: Final[Any] = jax.config
_ARRAY_TYPE: Final = jax_private.concrete_array_type()

_MOST_PASSES: Final = 4
"""How often C++ dispatch leaves a call to Python for a leaf that is not placed thereafter."""

_MOST_MET: Final = 1 << 17


@final
class _Met(threading.local):
    """The leaves for which C++ dispatch has left calls of this thread to Python, the last ones."""

    def __init__(self) -> None:
        self.leaves: deque[weakref.ref[LazyArray]] = deque(maxlen=_MOST_MET)


_met: Final = _Met()


@set_module("safejax")
@final
class LazyArray(jax.Array):
    """An array whose values are read, and placed on its devices, at the first need.

    Made by `load`, `deserialize` and `decode`, and by transforms of arrays. `shape`, `dtype`,
    `sharding`, `repr` and everything that JAX asks before it runs (`jax.tree`,
    `jax.eval_shape`, `jax.jit(f).lower`) read nothing. `leaf[i]`, with ints, slices and `...`,
    of a leaf that is not placed is a lazy leaf too and reads no more than its own bytes.
    `numpy.asarray(leaf)` reads the source exactly as it is stored. `str` and `format` show the
    values of a leaf that is placed, and of a scalar, which they read.
    """

    __slots__ = (
        "_aval", "_content", "_lock", "_name", "_notice", "_passes", "_placed", "_placement",
        "_rows",
        # Arrays can be referred to weakly; the base class does not always leave room for it.
        *(() if jax.Array.__weakrefoffset__ else ("__weakref__",)),
    )  # fmt: skip
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        content: Content,
        name: str,
        placement: Placement | None = None,
        notice: NarrowingNotice | None = None,
        *,
        dtype: Any = None,
    ) -> None:
        placement = placement or default_placement()
        self._content: Content | tuple[Family, int] = content
        self._name = name
        self._placement = placement
        # The rows, the first one as a leaf, and JAX's default device that it is bound for.
        self._rows: tuple[Rows, LazyArray, Any] | None = None
        self._notice = notice or NarrowingNotice()
        self._placed: jax.Array | None = None
        # How often C++ dispatch has met this leaf, and not the array, since that was there.
        self._passes = 0
        self._lock = threading.Lock()
        if content.key is not None:
            dtype = key_dtype(content.key)
        elif dtype is None:
            dtype = jax.dtypes.canonicalize_dtype(content.view.dtype)
        self._aval = abstract_value(content.shape, dtype, placement.sharding, content.weak_type)

    def sibling(self, content: Content | tuple[Family, int], name: str) -> "LazyArray":
        """A leaf of the same load, placement, shape and type that holds something else.

        That is a content, or the one with a number in a family.
        """
        leaf = LazyArray.__new__(LazyArray)
        leaf._content = content
        leaf._name = name
        leaf._placement = self._placement
        leaf._rows = None
        leaf._notice = self._notice
        leaf._placed = None
        leaf._passes = 0
        leaf._lock = threading.Lock()
        leaf._aval = self._aval
        return leaf

    def named(self, name: str) -> "LazyArray":
        """The same leaf under another name; it is placed if this one is."""
        leaf = self.sibling(self._content, name)
        leaf._placed = self._placed
        return leaf

    # ---- known without reading

    @property
    def name(self) -> str:
        """The leaf's name in its file or its Leaves."""
        return self._name

    @property
    def content(self) -> Content:
        """What the leaf holds on the host's side, unread."""
        content = self._content
        if not isinstance(content, Content):
            family, number = content
            content = self._content = family.content(number)
        return content

    @property
    def is_placed(self) -> bool:
        """Whether the values are on their devices now."""
        return self._placed is not None and not self._placed.is_deleted()

    @property
    def placed_now(self) -> jax.Array | None:
        """The plain array, if the values are on their devices now; nothing is read."""
        placed = self._placed
        return None if placed is None or placed.is_deleted() else placed

    @property
    def aval(self) -> Any:
        return self._aval

    @property
    def shape(self) -> tuple[int, ...]:
        return self._aval.shape

    @property
    def dtype(self) -> Any:
        return self._aval.dtype

    @property
    def ndim(self) -> int:
        return len(self._aval.shape)

    @property
    def size(self) -> int:
        return math.prod(self._aval.shape)

    @property
    def itemsize(self) -> int:
        return self._aval.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def weak_type(self) -> bool:
        self._refuse_for_keys("weak_type")
        return self._aval.weak_type

    @property
    def sharding(self) -> Sharding:
        return self._placement.sharding

    @property
    def committed(self) -> bool:
        return self._placement.committed

    # By these names JAX asks, before it runs.
    _sharding = sharding
    _committed = committed

    @property
    def device(self) -> Any:
        devices = self._placement.sharding.device_set
        return next(iter(devices)) if len(devices) == 1 else self._placement.sharding

    def devices(self) -> set[Any]:
        return set(self._placement.sharding.device_set)

    @property
    def format(self) -> Any:
        self._refuse_for_keys("format")
        if not self.is_placed:
            sharding = self._placement.sharding
            layout = jax_private.default_layout(self._aval.shape, self._aval.dtype, sharding)
            if layout is not None:
                return Format(layout, sharding)
        return cast("Any", self.placed()).format

    @property
    def has_keys(self) -> bool:
        """Whether the leaf has typed keys."""
        content = self._content  # No family has keys, so that its content need not be made.
        return isinstance(content, Content) and content.key is not None

    def _refuse_for_keys(self, attribute: str) -> None:
        if self.has_keys:
            raise AttributeError(f"'LazyArray' object has no attribute {attribute!r}")

    @property
    def is_fully_addressable(self) -> bool:
        return self._placement.sharding.is_fully_addressable

    @property
    def is_fully_replicated(self) -> bool:
        return self._placement.sharding.is_fully_replicated

    def is_deleted(self) -> bool:
        """False: what was donated or deleted is placed again when it is needed."""
        return False

    def delete(self) -> None:
        """Free the placed array; the next need places it again."""
        if self._placed is not None:
            self._placed.delete()

    def __bool__(self) -> bool:
        return bool(self.placed())  # In JAX 0.8 keys have no `__bool__`, only a length.

    def __len__(self) -> int:
        if not self._aval.shape:
            raise TypeError("len() of unsized object")
        return self._aval.shape[0]

    def __repr__(self) -> str:
        state = "placed" if self.is_placed else "unread"
        if _MISSING:  # JAX shows this where it refuses a leaf.
            state += "; call safejax.materialize(tree) first"
        return f"LazyArray({self._aval.str_short()}, name={self._name!r}, {state})"

    def __str__(self) -> str:
        """The values of a placed leaf and of a scalar, which is read; else how to see them."""
        shown = self._shown()
        if shown is not None:
            return str(shown)
        return f"{self!r}; numpy.asarray(leaf) or safejax.materialize(leaf) reads its values"

    def __format__(self, spec: str) -> str:
        shown = self._shown()
        if shown is not None:
            return format(shown, spec)
        if spec:
            # What plain arrays raise, without a read.
            raise TypeError(
                f"leaf {self._name!r}: expected a scalar for the format {spec!r}, got "
                f"{self._aval.str_short()}: format an element, or what numpy.array2string gives"
            )
        return str(self)

    def _shown(self) -> Any:
        """What `str` and `format` show in the leaf's place; None if that would read an array.

        A scalar that is not placed is read, and not placed. It has the dtype that placing would
        give it; an integer that placing would refuse is shown as it is stored.
        """
        if self.is_placed:
            return self._placed if self.is_fully_addressable else None
        if self._aval.shape or self.content.key is not None or not self.content.view.has_values:
            return None
        value, dtype = np.asarray(self), self._aval.dtype
        if value.dtype == dtype or dtype.kind in "iu":
            return value[()]
        return narrowed(value, dtype, self._name, np.empty)[()]

    def __treescope_repr__(self, path: str | None, render: Callable[..., Any]) -> Any:
        """Treescope shows a placed leaf as its array, and any other as `repr` does."""
        if self.is_placed:
            return render(self._placed, path=path)
        parts: Any = sys.modules["treescope.rendering_parts"]  # It is treescope that asks.
        return parts.build_one_line_tree_node(repr(self), path)

    def __treescope_ndarray_adapter__(self) -> None:
        """None: for treescope the leaf is no array, of which it would read the values."""

    def __dir__(self) -> list[str]:
        """What the placed array has, and the leaf's `name` and `is_placed`; reads nothing."""
        names = dir(_ARRAY_TYPE if self.content.key is None else key_array_type())
        return [*filter(partial(hasattr, LazyArray), names), "is_placed", "name"]

    def __copy__(self) -> "LazyArray":
        return self.at_placement(self._placement)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LazyArray":
        return self.__copy__()

    def at_placement(self, placement: Placement) -> "LazyArray":
        """The same leaf, unread, bound for other devices."""
        return self._with(self.content, placement)

    def with_weak_type(self, weak_type: bool) -> "LazyArray":
        """The same leaf, unread, weakly typed or not; itself if it is so already."""
        if self._aval.weak_type == weak_type:
            return self
        return self._with(self.content._replace(weak_type=weak_type), self._placement)

    def _with(self, content: Content, placement: Placement | None) -> "LazyArray":
        # The dtype too: the x64 mode may have changed since this leaf was made.
        dtype = self._aval.dtype
        return LazyArray(content, self._name, placement, self._notice, dtype=dtype)

    # ---- read

    def placed(self) -> jax.Array:
        """The plain array, on its devices; read and placed now if it is not yet."""
        placed = self._placed
        if placed is not None and not placed.is_deleted():
            return placed
        if _MISSING:
            raise self._unsupported()
        self.warn_if_narrowed()
        run_untraced(self.place_in_this_thread, self._placed_dtype())
        placed = self._placed
        assert placed is not None
        return placed

    @property
    def at_dispatch(self) -> object:
        """The plain array, or `UNPLACED` at the first need.

        The call then goes on in Python, which is slow, and where all leaves that are needed are
        placed at once. A leaf that is not placed when those are is one that the function ignores:
        it is placed at the next call, so that this and all others are fast. So is one after some
        calls that have needed no leaf, since they failed or ignored all.
        """
        placed = self._placed
        if placed is not None and not placed.is_deleted():
            return placed
        if self._passes < _MOST_PASSES:
            self._passes += 1
            _met.leaves.append(weakref.ref(self))
            return jax_hooks.UNPLACED
        return self.placed()

    @staticmethod
    def placed_at_once(leaves: Sequence["LazyArray"]) -> list[jax.Array]:
        """The plain arrays of some leaves; those that are not placed are read at once."""
        left = {id(leaf): leaf for leaf in leaves if not leaf.is_placed}
        if len(left) > 1 and not _MISSING:
            for leaf in left.values():
                leaf.warn_if_narrowed()
            place_at_once(left.values(), LazyArray.place_many_in_this_thread)
        placed = [leaf.placed() for leaf in leaves]
        met, _met.leaves = _met.leaves, deque(maxlen=_MOST_MET)
        for leaf in (each() for each in met):
            if leaf is not None and not leaf.is_placed:
                leaf._passes = _MOST_PASSES
        return placed

    def traced_aval(self) -> Any:
        """The abstract value that a trace sees: what JAX asks for first."""
        if _MISSING:
            raise self._unsupported()
        return self._aval

    def warn_if_narrowed(self) -> None:
        """Give the notice that placing the leaf will narrow it, if it will.

        It must be called in the user's thread, since the one that places has no caller.
        """
        content, placed = self.content, self._aval.dtype
        stored = content.view.dtype
        if stored == placed or content.key is not None:
            return
        if placed.kind in "fc" and not self.is_placed:
            self._notice.give(self._name, stored, placed)

    def place_in_this_thread(self) -> list[NDArray[Any]]:
        """Place the leaf if it is not; to be called by `run_untraced`, where there is no trace.

        What comes back are the blocks of it that were not read: they are used in place.
        """
        with AtWork(self), self._lock:
            if self._placed is not None and not self._placed.is_deleted():
                return []
            placed = self._place()
            self._keep(placed.array)
        return placed.in_place

    def forget_threads(self) -> None:
        """Be placed by nobody, in a forked process whose parent had a thread that placed it."""
        self._lock = threading.Lock()

    def _keep(self, array: jax.Array) -> None:
        """Take an array as the placed one; stored again, its integers are what they were."""
        self._placed = array
        self._passes = 0
        stored = self.content.view.dtype
        if stored.kind in "iu" and not self.has_keys and self._aval.dtype != stored:
            remember_stored(array, stored)

    @staticmethod
    def place_many_in_this_thread(leaves: Sequence["LazyArray"]) -> list[NDArray[Any]]:
        """Like `place_in_this_thread`, for leaves whose bytes are requested together."""
        with AtWork(*leaves), ExitStack() as locked:
            # In one order for all threads, so that none waits for another one that waits for it.
            for leaf in sorted(leaves, key=id):
                locked.enter_context(leaf._lock)
            left = [leaf for leaf in leaves if not leaf.is_placed]
            jobs = [
                Job(leaf.content, leaf._placed_dtype(), leaf._placement, leaf._name)
                for leaf in left
            ]
            in_place: list[NDArray[Any]] = []
            for leaf, placed in zip(left, place_many(jobs), strict=True):
                assert leaf.has_keys or placed.array.aval == leaf._aval
                leaf._keep(placed.array)
                in_place += placed.in_place
        return in_place

    def adopt(self, array: jax.Array) -> None:
        """Take what placing would give as the placed array, if there is none."""
        assert array.aval == self._aval, (array.aval, self._aval)
        with AtWork(self), self._lock:
            if not self.is_placed:
                self._keep(array)

    @property
    def is_worth_a_thread(self) -> bool:
        """Whether placing it takes time in which other threads get on."""
        content, dtype = self.content, self._aval.dtype
        return content.key is None and is_worth_a_thread(content.view, dtype, self._placement)

    def _place(self) -> Placed:
        content, aval = self.content, self._aval
        if content.key is not None:
            return place(content, content.view.dtype, self._placement, self._name)
        return place(content, aval.dtype, self._placement, self._name, aval)

    def _unsupported(self) -> UnsupportedJaxError:
        return UnsupportedJaxError(
            f"leaf {self._name!r}: JAX {jax.__version__} lacks the hooks for "
            f"{', '.join(_MISSING)} that lazy leaves need: call safejax.materialize(tree) "
            "first, and use the arrays that it gives"
        )

    def _placed_dtype(self) -> Dtype:
        """The dtype of what is put on a device: of the key data, for keys."""
        return self.content.view.dtype if self.content.key is not None else self._aval.dtype

    def __array__(
        self, dtype: Any = None, context: None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        del context
        content = self._content
        if not isinstance(content, Content):
            family, number = content
            host = family.read(number)
        elif content.key is None:
            host = content.view.read()
        else:
            return self.placed().__array__(dtype)  # JAX's own refusal
        return np.asarray(host, dtype) if copy is None else np.array(host, dtype, copy=copy)

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int) -> memoryview:
            """The values as they are stored, read-only, in place where they are in memory.

            NumPy asks for this first, clears any error, and then asks for `__array__`: what is
            requested from elsewhere would be requested again, after all pauses, if that failed.
            """
            dtype = self.content.view.dtype
            if self.content.key is not None or dtype.isbuiltin != 1:
                raise BufferError(
                    f"leaf {self._name!r}: expected a dtype that Python's buffers have, got "
                    f"{self._aval.dtype}: take numpy.asarray(leaf)"
                )
            if self.content.view.plans_reads:
                raise BufferError(
                    f"leaf {self._name!r}: expected values in memory or in a mapped file, got some "
                    "that are requested: take memoryview(numpy.asarray(leaf))"
                )
            return memoryview(self.__array__()).toreadonly()

    def __bytes__(self) -> bytes:
        """The values as they are stored, in C order; for a scalar what `bytes` gives for an int."""
        if self.content.key is not None:
            raise TypeError("cannot convert a typed key array to bytes")
        if not self._aval.shape and self._aval.dtype.kind in "iu":
            return bytes(int(self.placed()))
        return np.asarray(self).tobytes()

    def __getitem__(self, index: Any) -> jax.Array:
        if self._placed is None or self._placed.is_deleted():
            if type(index) is int:
                row = self._row(index)
                if row is not None:
                    return row
            basic = basic_index(index, self._aval.shape)
            placement = None if basic is None else self._placement_of_part(basic)
            if basic is not None and placement is not None:
                content = self.content
                return self._with(content.of(content.view.index(basic)), placement)
        return self.placed()[with_placed(index, LazyArray)]

    def __array_module__(self, types: Any) -> Any:
        known = tuple(_ARRAY_TYPE if kind is LazyArray else kind for kind in types)
        return cast("Any", self.placed()).__array_module__(known)

    def __index__(self) -> int:
        # Python asks this of whatever might be a size, before it asks for a buffer.
        is_key = self.content.key is not None
        if not is_key and (self._aval.shape or self._aval.dtype.kind not in "iu"):
            raise TypeError("Only integer scalar arrays can be converted to a scalar index.")
        return cast("Any", self.placed()).__index__()

    def __reversed__(self) -> Any:
        return reversed(cast("Any", self.placed()))

    def _placement_of_part(self, index: tuple[BasicIndex, ...]) -> Placement | None:
        """Where JAX puts `array[index]`; None where only the placed array can tell."""
        content, placement = self.content, self._placement
        return placement_of_part(placement, index, self._aval.shape, is_key=content.key is not None)

    def _row(self, number: int) -> "LazyArray | None":
        """`self[number]` where that is simple: what a loop over rows asks for."""
        default, known = _CONFIG.jax_default_device, self._rows
        if known is None or known[2] is not default:
            rows = Rows.of(self.content)
            placement = None if rows is None else self._placement_of_part((0, ...))
            if rows is None or placement is None:
                return None
            known = self._rows = rows, self._with(rows.content(0), placement), default
        rows, first, _ = known
        if not -rows.size <= number < rows.size:
            return None
        return first.sibling((rows, number % rows.size), self._name)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def __reduce_ex__(self, protocol: Any) -> Any:
        placed = self.placed()
        if self.content.key is not None:
            # What keys give names their class, and pickle compares that with ours.
            wrap = partial(jax.random.wrap_key_data, impl=self.content.key)
            return wrap, (jax.random.key_data(placed),)
        return placed.__reduce_ex__(protocol)

    # JAX asks isinstance(x, ArrayImpl) wherever it looks at an array's sharding, and takes what
    # says no for an array of NumPy's. Only the few functions that hand what says yes to C++,
    # which looks at the real type, get the real one.
    @property
    def __class__(self) -> type[Any]:  # pyright: ignore
        if self.has_keys:
            return LazyArray
        caller = sys._getframe(1).f_code  # pyright: ignore[reportPrivateUsage]
        return LazyArray if caller in jax_hooks.LOOK_AT_REAL_TYPES else _ARRAY_TYPE


hand_on(LazyArray, _ARRAY_TYPE)
_MISSING: Final = jax_hooks.register(LazyArray, LazyArray.placed_at_once)
