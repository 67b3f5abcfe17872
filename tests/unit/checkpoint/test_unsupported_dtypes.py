"""A tensor of a dtype that JAX lacks is refused where it is used, and only there. (R12)"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import safejax
from safejax import InvalidFileError, MismatchError


def blob(code: str = "F6_E2M3", other: str = "w") -> bytes:
    """A file with two tensors, one of which has a dtype of 6 bits."""
    header = json.dumps(
        {
            "packed.x": {"dtype": code, "shape": [2, 4], "data_offsets": [0, 6]},
            other: {"dtype": "I8", "shape": [2], "data_offsets": [6, 8]},
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes([1, 2, 3, 4, 5, 6, 7, 8])


CODES = pytest.mark.parametrize("code", ["F6_E2M3", "F6_E3M2"])


@CODES
def test_the_whole_is_refused_with_a_remedy_that_works(code: str) -> None:
    data = blob(code)
    with pytest.raises(InvalidFileError, match=f"'packed.x': .*JAX can hold, got {code}") as caught:
        safejax.deserialize(data)
    text = str(caught.value)
    remedy = text[text.index("transform=") + len("transform=") :].partition(", and")[0]
    tree = safejax.deserialize(data, transform=eval(remedy, {"drop": safejax.drop}))
    assert tree["w"].tolist() == [7, 8]


@CODES
@pytest.mark.parametrize(
    "transform",
    [
        safejax.drop("packed.*"),
        safejax.select("w"),
        safejax.chain(safejax.prefix("net"), safejax.drop("net.packed.{i}")),
        safejax.chain(safejax.cast("float32", source="int8"), safejax.drop("packed.x")),
    ],
    ids=repr,
)
def test_it_can_be_dropped(code: str, transform: Any) -> None:
    (leaf,) = jax.tree.leaves(safejax.deserialize(blob(code), transform=transform))
    assert np.asarray(leaf).tolist() == [7, 8]


@pytest.mark.parametrize("transform", [None, safejax.prefix("net"), safejax.cast("bfloat16")])
def test_a_plan_has_it_among_its_problems(transform: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(blob())
    planned = safejax.plan(path, transform=transform)
    (problem,) = planned.problems
    with pytest.raises(InvalidFileError) as caught:
        safejax.load(path, transform=transform)
    assert problem == str(caught.value)
    assert [leaf.shape for leaf in planned.leaves] == [(2,)]
    assert not safejax.plan(path, transform=safejax.drop("packed.*")).problems


def test_like_that_has_none_takes_the_rest() -> None:
    like = {"w": jax.ShapeDtypeStruct((2,), "int8")}
    with pytest.warns(safejax.PartialLoadWarning):
        tree = safejax.deserialize(blob(), like=like, strict=False)
    assert tree["w"].tolist() == [7, 8]
    with pytest.raises(MismatchError, match=r"packed\.x.*F6_E2M3\[2,4\], which JAX cannot hold"):
        safejax.deserialize(blob(), like=like)
    wanted = {**like, "packed": {"x": jax.ShapeDtypeStruct((2, 4), "float32")}}
    with pytest.raises(MismatchError, match=r"packed\.x.*F6_E2M3\[2,4\], which JAX cannot hold"):
        safejax.deserialize(blob(), like=wanted)


def test_leaves_hold_it_and_no_file_is_written_of_it() -> None:
    leaves = safejax.decode(blob())
    assert list(leaves) == ["packed.x", "w"]
    assert "F6_E2M3[2,4]" in repr(leaves)
    for use in (safejax.encode, safejax.unflatten):
        with pytest.raises(InvalidFileError, match="JAX can hold, got F6_E2M3"):
            use(leaves)
    # Transforms of values pass it on, as they do scalars.
    with pytest.raises(InvalidFileError, match="JAX can hold, got F6_E2M3"):
        safejax.unflatten(safejax.transpose("packed.x")(leaves))


def test_files_together_and_their_metadata(tmp_path: Path) -> None:
    for number in range(2):
        data = blob(other=f"w{number}").replace(b"packed.x", b"packed.%d" % number)
        (tmp_path / f"{number}.safetensors").write_bytes(data)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert safejax.metadata(files) == {}
    tree = safejax.load(files, transform=safejax.drop("packed.*"))
    assert sorted(tree) == ["w0", "w1"]
    assert safejax.plan(files, transform=safejax.drop("packed.*")).reads.nbytes == 4
    with pytest.raises(InvalidFileError, match=r"0\.safetensors: tensor 'packed\.0'"):
        safejax.load(files)
