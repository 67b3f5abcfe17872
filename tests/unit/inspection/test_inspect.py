"""inspect: what is said of files and trees, read from headers alone, and statistics of values."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import safejax
from safejax._src.inspection.rows import rows_of
from safejax._src.inspection.statistics import WINDOW_ELEMENTS
from tests.support.files import data_begin, golden, header_of
from tests.support.servers import HttpServer

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = [path for path in golden(GOLDEN) if "foreign" not in str(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden_files_have_what_their_headers_say(path: Path) -> None:
    data = path.read_bytes()
    header = header_of(data)
    header.pop("__metadata__", None)
    with safejax.observe_reads() as log:
        found = safejax.inspect(path)
        text, html, shown = found.to_json(), found._repr_html_(), str(found)  # pyright: ignore[reportPrivateUsage]
    assert log.nbytes == 0
    assert found.tensors.keys() == header.keys()
    begin = data_begin(data)
    leaves = safejax.decode(data)
    for name, tensor in found.tensors.items():
        first, end = header[name]["data_offsets"]
        assert tensor.span == (begin + first, begin + end)
        assert tensor.nbytes == end - first
        if isinstance(leaves[name], safejax.LazyArray):
            content = leaves[name].content
            assert (tensor.dtype, tensor.shape) == (content.view.dtype.name, content.view.shape)
            assert (tensor.key, tensor.weak_type) == (content.key, content.weak_type)
    assert found.nbytes == sum(tensor.nbytes for tensor in found.tensors.values())
    assert found.metadata == safejax.metadata(path)
    assert json.loads(text)["tensors"].keys() == header.keys()
    assert shown.splitlines()[0].startswith(f"{path}: ")
    assert html.startswith("<p>")


def test_a_leaf_that_is_in_place_is_used_in_place(tmp_path: Path) -> None:
    tree = {"a": jnp.ones((16, 16)), "b": jnp.ones(3), "c": np.ones(16), "d": jnp.ones(5, "int8")}
    path = tmp_path / "m.safetensors"
    safejax.save(tree, path)
    found, planned = safejax.inspect(path), safejax.plan(path)
    for leaf in planned.leaves:
        assert found.tensors[leaf.name].in_place == leaf.in_place
    assert {tensor.in_place for tensor in found.tensors.values()} == {True, False}


def test_a_folder_an_index_a_list_and_a_url_are_one_checkpoint(tmp_path: Path) -> None:
    tree = {"a": [jnp.ones(40), jnp.zeros(30)], "b": {"c": jnp.ones(3), "d": "text"}}
    safejax.save(tree, tmp_path / "m", max_shard_bytes=140)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    of_folder = safejax.inspect(tmp_path / "m")
    assert list(of_folder.tensors) == ["a.0", "a.1", "b.c"]
    assert [file.tensors for file in of_folder.files] == [1, 2]
    assert (of_folder.structure, of_folder.values) == ({"a": "list"}, {"b.d": "text"})
    of_index = safejax.inspect(tmp_path / "m" / "model.safetensors.index.json")
    assert of_index.tensors == of_folder.tensors
    assert safejax.inspect(files).tensors.keys() == of_folder.tensors.keys()
    server = HttpServer()
    try:
        server.files["/m.safetensors"] = files[0].read_bytes()
        of_url = safejax.inspect(f"{server.url}/m.safetensors")
    finally:
        server.close()
    assert list(of_url.tensors) == list(safejax.inspect(files[0]).tensors)


def test_what_a_load_warns_of_and_refuses_is_said(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(3), "v": np.ones(2)}, tmp_path / "a.safetensors")
    safetensors.numpy.save_file({"w": np.ones(4)}, tmp_path / "b.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(safejax.InvalidFileError, match=r"'w': expected it in one file"):
        safejax.inspect(files)
    index = {"weight_map": {"w": "b.safetensors", "u": "a.safetensors"}}
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(safejax.InvalidFileError, match=r"'u': expected it in a.safetensors"):
        safejax.inspect(path)
    index["weight_map"]["w"] = "b.safetensors"
    del index["weight_map"]["u"]
    index["weight_map"]["v"] = "a.safetensors"
    path.write_text(json.dumps(index))
    found = safejax.inspect(path)
    assert found.tensors["w"].shape == (4,)
    assert found.warnings == (
        "tensor 'w': the index gives it to b.safetensors, it is also in a.safetensors",
    )


def test_a_checkpoint_of_orbax_is_inspected_without_a_read(tmp_path: Path) -> None:
    tree = {
        "l": [jnp.arange(6.0).reshape(2, 3), {"b": jnp.ones(3, jnp.bfloat16)}],
        "n": 3, "k": jax.random.key(0), "empty": {},
    }  # fmt: skip
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
    with safejax.observe_reads() as log:
        found = safejax.inspect(tmp_path / "steps")
        shown, html = str(found), found.to_html()
    assert log.nbytes == 0
    expected = safejax.inspect(tree)
    assert found.source == str(tmp_path / "steps")
    assert found.source in shown
    assert "bfloat16" in html
    kept = ("dtype", "shape", "nbytes", "key", "weak_type")
    assert {name: [getattr(each, key) for key in kept] for name, each in found.tensors.items()} == {
        name: [getattr(each, key) for key in kept] for name, each in expected.tensors.items()
    }
    assert (found.values, found.structure) == (expected.values, expected.structure)
    assert {each.sharding for each in found.tensors.values()} == {None}
    assert found.tensors["l.0"].file == str(tmp_path / "steps" / "3" / "default" / "l.0")
    of_values = safejax.inspect(tmp_path / "steps" / "3", stats=True, where="l.*")
    assert of_values.tensors["l.0"].statistics is not None
    assert of_values.tensors["l.0"].statistics.mean == 2.5
    assert safejax.diff(tmp_path / "steps", tree).is_same


def test_trees_are_inspected_without_a_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    safejax.save({"w": jnp.ones((8, 2)), "key": jax.random.key(0), "n": 3}, path)
    tree = safejax.load(path, sharding={"w": rows, "key": None, "n": None})
    with safejax.observe_reads() as log:
        found = safejax.inspect(
            {"lazy": tree, "plain": np.ones(3), "aval": jax.ShapeDtypeStruct((), jnp.float32)}
        )
    assert log.nbytes == 0
    assert not tree["w"].is_placed
    assert found.tensors["lazy.w"].file == str(path)
    assert "'x'" in str(found.tensors["lazy.w"].sharding)
    assert found.tensors["lazy.key"].key == "threefry2x32"
    assert found.tensors["plain"].dtype == "float64"
    assert found.values == {"lazy.n": 3}
    assert repr(found) == "Inspection('tree': 4 tensors, 100 B)"


def test_only_chosen_names(tmp_path: Path) -> None:
    data = safejax.serialize({"a": {"w": jnp.ones(3), "b": jnp.ones(2)}, "c": jnp.ones(1)})
    assert safejax.inspect(data, where="a.*").tensors.keys() == {"a.b", "a.w"}
    assert safejax.inspect(data, where=["*.w", "c"]).tensors.keys() == {"c", "a.w"}
    assert list(safejax.inspect(data, where=lambda name: name == "c").tensors) == ["c"]
    with pytest.raises(safejax.TransformError, match="'x', which matches none of 3"):
        safejax.inspect(data, where="x")


# ---- statistics

RNG = np.random.default_rng(20)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 1.0, -3.0, np.nan])


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(3, 2, (7, WINDOW_ELEMENTS // 3)).astype(np.float32),
        RNG.normal(size=(50, 3)).astype(ml_dtypes.bfloat16),
        RNG.integers(-100, 100, 5000).astype(np.int8),
        np.array([True, False, True]),
        RNG.normal(size=10) + 1j,
        np.array([1e308, -1e308, 0.0]),
        SPECIAL,
        SPECIAL[:2],
        np.full(9, 2.5, np.float16),
        np.zeros((0, 3)),
        np.array([-1, 3, 0]).astype(ml_dtypes.int4),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_statistics_are_those_of_numpy(values: Any) -> None:
    data = safejax.serialize({"w": values})
    read: list[tuple[int, int]] = []
    found = safejax.inspect(data, stats=True, progress=lambda *at: read.append(at))
    statistics = found.tensors["w"].statistics
    assert statistics is not None
    exact = (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float64).ravel()
    finite = exact[np.isfinite(exact)]
    assert statistics.nans == np.isnan(exact).sum()
    assert statistics.infs == np.isinf(exact).sum()
    assert statistics.size == values.size
    if not finite.size:
        assert (statistics.min, statistics.std, statistics.bars) == (None, None, "")
        return
    assert statistics.mean is not None
    assert statistics.std is not None
    assert (statistics.min, statistics.max) == (finite.min(), finite.max())
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(statistics.mean, finite.mean(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(statistics.std, finite.std(), rtol=1e-9)
    assert sum(statistics.histogram) == finite.size
    assert len(statistics.bars) == len(statistics.histogram)
    if finite.max() > finite.min() and finite.max() < 1e300:
        expected, _ = np.histogram(finite, len(statistics.histogram))
        # An element at an edge may be counted next to it.
        assert np.abs(np.cumsum(expected) - np.cumsum(statistics.histogram)).max() <= 3
    assert read[-1][0] == read[-1][1] == found.nbytes
    assert len(read) == (3 if values.size > WINDOW_ELEMENTS else 1)


def test_what_a_file_says_does_nothing_to_a_terminal() -> None:
    evil = "\x1b[2J\nfault: none\u202e"
    data = safejax.serialize({evil: jnp.ones(2)}, metadata={evil: evil})
    for shown in (str(safejax.inspect(data)), str(safejax.diff(data, safejax.serialize({})))):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\nfault" not in shown
    assert "<script>" not in safejax.inspect({"<script>": jnp.ones(2)})._repr_html_()  # pyright: ignore[reportPrivateUsage]


def test_a_long_name_does_not_make_every_line_long() -> None:
    names = ["x" * 100_000, *map(str, range(50))]
    found = safejax.inspect({name: np.ones(1) for name in names})
    assert 100_000 < len(str(found)) < 120_000


def test_rows_are_a_tree_of_the_names() -> None:
    class Sized:
        nbytes = 4

    names = ["a.b.c", "a.b.d", "e.f.g", "h", "h.absmax", "e.f.i.k"]
    rows = rows_of({name: Sized() for name in names})
    assert [(row.depth, row.label, row.tensors) for row in rows] == [
        (0, "a.b", 2), (1, "c", 1), (1, "d", 1), (0, "e.f", 2), (1, "g", 1), (1, "i.k", 1),
        (0, "h", 1), (0, "h.absmax", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [["h.absmax", "h"], ["x.h.a", "x.h", "x"], ["h.a", "h", "h.b"]])
def test_a_tensor_whose_name_others_extend_has_a_row(names: list[str]) -> None:
    arrays = {name: np.ones(1) for name in names}
    rows = rows_of(arrays)
    assert {id(row.tensor) for row in rows if row.tensor is not None} == set(
        map(id, arrays.values())
    )
    assert sum(row.tensors for row in rows if row.depth == 0) == len(names)


def test_a_name_may_have_any_number_of_segments() -> None:
    names = ["a." * 5000 + "x", "a." * 5000 + "y", "z"]
    found = safejax.inspect(safejax.serialize({name: np.ones(1) for name in names}))
    assert [(row.depth, row.tensors) for row in found.rows()] == [(0, 2), (1, 1), (1, 1), (0, 1)]
    assert str(found).count("\n") > 4


def test_files_are_looked_into_without_jax(tmp_path: Path) -> None:
    safejax.save({"w": jnp.ones(3, jnp.int4)}, tmp_path / "m.safetensors", checksum=True)
    program = """if True:
        import sys, safejax
        path = sys.argv[1]
        assert safejax.inspect(path, stats=True).tensors["w"].statistics.mean == 1
        assert safejax.diff(path, path).is_same
        assert safejax.verify(path).is_valid
        assert not {"jax", "jaxlib", "rich"} & sys.modules.keys()
    """
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, tmp_path / "m.safetensors"],
        check=True, cwd=GOLDEN.parents[1],
    )  # fmt: skip
