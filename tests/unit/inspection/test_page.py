"""Pages of inspections: what is in them, that they need nothing else, and that texts stay texts."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import safejax
from safejax._src.inspection.text import printable
from tests.support.files import golden
from tests.support.hostile_texts import HOSTILE_TEXTS

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"


@final
class Page(HTMLParser):
    """What is in a page: its elements with their attributes and texts, and its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[str] = []
        self._is_inside = False
        self.feed(page)
        self.close()
        (number,) = (n for n, (_, named) in enumerate(self.elements) if named.get("id") == "data")
        self.data: dict[str, Any] = json.loads(self.contents[number])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.contents.append("")
        self._is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = False

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            self.contents[-1] += data

    def of(self, tag: str) -> list[str]:
        """The contents of all elements of a kind."""
        return [
            text
            for (each, _), text in zip(self.elements, self.contents, strict=True)
            if each == tag
        ]


@pytest.mark.parametrize("path", golden(GOLDEN), ids=lambda path: path.name)
def test_a_page_has_all_tensors_and_reads_nothing(path: Path) -> None:
    with safejax.observe_reads() as log:
        found = safejax.inspect(path)
        page = Page(found.to_html())
    assert log.nbytes == 0
    assert [tensor[0] for tensor in page.data["tensors"]] == list(map(printable, found.tensors))
    for row, shown in zip(found.rows(), page.data["rows"], strict=True):
        assert shown[:2] == [row.depth, printable(row.label)]
        assert (shown[2] < 0) == (row.tensor is None)
    for tensor, shown in zip(found.tensors.values(), page.data["tensors"], strict=True):
        assert page.data["dtypes"][shown[1]] == tensor.dtype
        assert tuple(shown[2]) == tensor.shape
        assert shown[3] == tensor.nbytes
        assert tensor.span is not None
        assert shown[5] == tensor.span[0]
    for key, value in found.metadata.items():
        assert {printable(key), printable(value)} <= set(page.of("td"))


def test_a_page_needs_nothing_else() -> None:
    page = Page(safejax.inspect({"w": jnp.ones(3)}).to_html())
    for tag, named in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base", "form", "a")
        assert not [name for name in named if name in ("src", "href", "style") or name[:2] == "on"]
    (policy,) = (named["content"] for _, named in page.elements if "http-equiv" in named)
    (style,) = page.of("style")
    _, script = page.of("script")
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (script, style)
    ]
    assert policy == (
        f"default-src 'none'; script-src {digests[0]}; style-src {digests[1]}; base-uri 'none'; "
        "form-action 'none'"
    )
    for what in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:",
    ):
        assert what not in script.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_texts_of_files_are_no_markup(text: str) -> None:
    def page_of(text: str) -> Page:
        tree = {text: jnp.ones(3), "b": {text: text}}
        data = safejax.serialize(tree, metadata={text: text})
        return Page(safejax.inspect(data).to_html())

    hostile, plain = page_of(text), page_of("plain.text" if "." in text else "plain")
    assert hostile.elements == plain.elements
    assert [tensor[0] for tensor in hostile.data["tensors"]] == [printable(text)]
    assert hostile.of("td").count(printable(text)) >= 2
    assert hostile.of("script")[1] == plain.of("script")[1]


def test_the_shards_of_a_tree_are_in_its_page() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tree = {
        "w": jax.device_put(np.ones((8, 6)), NamedSharding(mesh, PartitionSpec("data", "model"))),
        "b": jax.device_put(np.ones(6), NamedSharding(mesh, PartitionSpec("model"))),
        "key": jax.device_put(
            jax.random.split(jax.random.key(0), 8), NamedSharding(mesh, PartitionSpec("data"))
        ),
        "one": jnp.ones(2),
        "host": np.ones(2),
    }
    found = safejax.inspect(tree)
    for name in ("w", "b"):
        indices = tree[name].sharding.devices_indices_map(tree[name].shape)
        shown = {
            (device, shard.begin, shard.end)
            for shard in found.tensors[name].shards
            for device in shard.devices
        }
        assert shown == {
            (
                f"cpu:{device.id}",
                tuple(
                    part.indices(size)[0]
                    for part, size in zip(index, tree[name].shape, strict=True)
                ),
                tuple(
                    part.indices(size)[1]
                    for part, size in zip(index, tree[name].shape, strict=True)
                ),
            )
            for device, index in indices.items()
        }
    assert len(found.tensors["w"].shards) == 8
    assert [len(shard.devices) for shard in found.tensors["b"].shards] == [4, 4]
    key = found.tensors["key"]
    assert {shard.end[1:] for shard in key.shards} == {key.shape[1:]}
    assert [shard.devices for shard in found.tensors["one"].shards] == [("cpu:0",)]
    assert found.tensors["host"].shards == ()
    page = Page(found.to_html())
    assert sorted(page.data["devices"]) == [f"cpu:{number}" for number in range(8)]
    by_name = {tensor[0]: tensor[7] for tensor in page.data["tensors"]}
    assert len(page.data["layouts"][by_name["w"]][2]) == 8
    assert by_name["host"] == -1


def test_shardings_without_devices_have_no_shards() -> None:
    mesh = jax.sharding.AbstractMesh((2,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    found = safejax.inspect({"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)})
    assert found.tensors["w"].shards == ()
    assert "x" in Page(found.to_html()).data["layouts"][0][0]


def test_a_plan_is_drawn_by_its_avals(tmp_path: Path) -> None:
    tree = {"w": jnp.ones((8, 6)), "key": jax.random.key(1), "weak": jnp.asarray(1.0)}
    safejax.save(tree, tmp_path / "m.safetensors")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rules = safejax.sharding_rules(mesh, [("w", PartitionSpec("x"))])
    planned = safejax.plan(tmp_path / "m.safetensors", sharding=rules)
    assert [(aval.shape, aval.dtype) for aval in planned.avals.values()] == [
        (leaf.shape, leaf.dtype) for leaf in planned.leaves
    ]
    found = safejax.inspect(planned.avals)
    assert len(found.tensors["w"].shards) == 8
    assert found.tensors["weak"].weak_type
    assert len(Page(found.to_html()).data["devices"]) == 8


def test_statistics_that_are_not_finite_are_texts() -> None:
    tree = {"w": np.array([np.finfo(np.float64).max] * 4), "nan": np.array([np.nan])}
    page = Page(safejax.inspect(tree, stats=True).to_html())
    statistics = {tensor[0]: tensor[8] for tensor in page.data["tensors"]}
    assert statistics["nan"][:5] == [None, None, None, None, 1]
    assert all(isinstance(value, float | str) for value in statistics["w"][:4])
    assert page.data["statistics"]


def test_what_is_long_is_cut() -> None:
    tree = {"w": jnp.ones(1), "values": {f"v{number}": number for number in range(1000)}}
    data = safejax.serialize(tree, metadata={"long": "x" * 100_000})
    page = Page(safejax.inspect(data).to_html())
    assert "… 800 more" in page.of("td")
    assert max(map(len, page.of("td"))) < 5000
