"""Arguments in each other's place: the error says what to write, and that works."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import safejax
from safejax import ShardingError, TransformError

TREE = {"w": jnp.ones((4, 2))}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path)
    return str(path)


def refused(call: Callable[[], Any], *, with_error: type[Exception] = TypeError) -> str:
    with pytest.raises(with_error) as caught:
        call()
    return str(caught.value)


def ran(message: str, begin: str, **names: Any) -> Any:
    """What the remedy in a message gives: the expression that begins with `begin`."""
    code = message[message.rindex(begin) :].partition("; ")[0]
    return eval(
        code,
        {
            "safejax": safejax,
            "jax": jax,
            **{name: getattr(safejax, name) for name in safejax.__all__},
            **names,
        },
    )


def test_save_with_the_path_first(path: str) -> None:
    for first in (path, Path(path)):
        message = refused(lambda first=first: safejax.save(first, TREE))  # pyright: ignore
        ran(message, "safejax.save(", tree=TREE, PosixPath=Path)
        assert safejax.load(path)["w"].shape == (4, 2)


def test_save_async_names_itself(path: str) -> None:
    message = refused(lambda: safejax.save_async(path, TREE))  # pyright: ignore
    ran(message, "safejax.save_async(", tree=TREE, PosixPath=Path).result()
    assert safejax.load(path)["w"].shape == (4, 2)
    message = refused(lambda: safejax.save_async(TREE, io.BytesIO()))  # pyright: ignore
    assert message.startswith("save_async: expected a path")


def test_save_from_one_file_to_another(path: str, tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    message = refused(lambda: safejax.save(path, target))
    assert not Path(target).exists()
    ran(message, "safejax.save(")
    assert safejax.load(target)["w"].shape == (4, 2)
    # Also where there is no such file: the string would be stored.
    assert "expected a tree, got the path 'in'" in refused(lambda: safejax.save("in", target))
    safejax.save({"name": "in"}, target)
    assert safejax.load(target) == {"name": "in"}


def test_save_to_and_load_from_an_open_file(path: str) -> None:
    file = io.BytesIO()
    message = refused(lambda: safejax.save(TREE, file))  # pyright: ignore
    ran(message, "file.write(", file=file, tree=TREE)
    file.seek(0)
    with Path(path).open("rb") as opened:
        for source in (file, opened):
            message = refused(lambda source=source: safejax.load(source))  # pyright: ignore
            assert ran(message, "safejax.deserialize(", file=source)["w"].shape == (4, 2)


def test_load_of_bytes_and_of_a_tree(path: str) -> None:
    data = Path(path).read_bytes()
    message = refused(lambda: safejax.load(data))  # pyright: ignore
    assert ran(message, "safejax.deserialize(", data=data)["w"].shape == (4, 2)
    message = refused(lambda: safejax.load(TREE, like=path))  # pyright: ignore
    assert "pass the path first, and a tree as like=tree" in message


@pytest.mark.parametrize("function", ["materialize", "abstract", "serialize"])
def test_functions_of_trees_with_a_path(function: str, path: str) -> None:
    for given in (path, Path(path), "no/such/file.safetensors", "hf://model"):
        message = refused(lambda given=given: getattr(safejax, function)(given))
        assert f"{function}: expected a tree, got the path {given!r}: pass safejax.load" in message
    loaded = getattr(safejax, function)(safejax.load(path))
    assert loaded
    # Any other string is a tree of one leaf.
    assert safejax.deserialize(safejax.serialize("text")) == "text"
    assert safejax.materialize("te\0xt") == "te\0xt"


def test_like_with_a_path(path: str) -> None:
    data = Path(path).read_bytes()
    for call in (
        lambda: safejax.load(path, like=path),
        lambda: safejax.deserialize(data, like=path),
    ):
        message = refused(call)
        assert "like: expected a tree" in message
        assert ran(message, "safejax.load(", path=path)["w"].shape == (4, 2)


TRANSFORMS: dict[str, Any] = {
    "a list": [safejax.rename({"w": "v"}), safejax.cast("bfloat16")],
    "a tuple": (safejax.rename({"w": "v"}), safejax.cast("bfloat16")),
    "a dict": {"w": "v"},
    "a list of rows": [("w", "v", "x y -> y x")],
    "a name of a dtype": "bfloat16",
    "a dtype": np.dtype("float16"),
    "a type": jnp.bfloat16,
    "a type of NumPy's": np.float16,
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_transform_that_is_none(kind: str, path: str) -> None:
    message = refused(
        lambda: safejax.load(path, transform=TRANSFORMS[kind]), with_error=TransformError
    )
    transform = eval(
        message.rpartition("pass transform=")[2],
        {name: getattr(safejax, name) for name in safejax.__all__},
    )
    loaded = safejax.load(path, transform=transform)
    assert loaded.keys() == {"v" if "'v'" in message else "w"}
    leaf = loaded.popitem()[1]
    assert (leaf.dtype == jnp.float32) == (kind in ("a dict", "a list of rows"))
    assert (leaf.shape == (2, 4)) == (kind == "a list of rows")
    assert refused(
        lambda: safejax.save(TREE, path, transform=TRANSFORMS[kind]), with_error=TransformError
    )


def test_a_function_that_makes_a_transform_and_was_not_called(path: str) -> None:
    message = refused(
        lambda: safejax.load(path, transform=safejax.cast),  # pyright: ignore
        with_error=TransformError,
    )
    assert "call it, transform=cast(...)" in message
    assert "for example transform=cast('bfloat16')" in refused(
        lambda: safejax.load(path, transform=3),  # pyright: ignore
        with_error=TransformError,
    )


def test_progress_that_is_no_function(path: str) -> None:
    counts: list[tuple[int, int]] = []
    for call in (
        lambda progress: safejax.save(TREE, path, progress=progress),
        lambda progress: safejax.save_async(TREE, path, progress=progress).result(),
        lambda progress: safejax.materialize(safejax.load(path), progress=progress),
    ):
        message = refused(lambda call=call: call(3))
        code = message.rpartition("progress=")[2]
        call(eval(code, {"print": lambda *each: counts.append(each)}))
    assert counts[-1] == (32, 32)


def test_sharding_rules_as_a_dict() -> None:
    mesh = jax.make_mesh((2,), ("x",))
    rules = {"*": P("x")}
    message = refused(
        lambda: safejax.sharding_rules(mesh, rules),  # pyright: ignore
        with_error=ShardingError,
    )
    pairs = eval(message.rpartition("pass ")[2], {"list": list, "rules": rules})
    aval = jax.ShapeDtypeStruct((4,), "float32")
    chosen = safejax.sharding_rules(mesh, pairs)("w", aval)
    assert chosen == jax.NamedSharding(mesh, P("x"))


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "1", None, True])
@pytest.mark.parametrize("save", [safejax.save, safejax.save_async])
def test_a_timeout_is_a_number_of_seconds(save: Any, timeout: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timeout: expected seconds, more than 0, got"):
        save({"w": np.ones(3)}, tmp_path / "m.safetensors", timeout=timeout)
    assert list(tmp_path.iterdir()) == []
