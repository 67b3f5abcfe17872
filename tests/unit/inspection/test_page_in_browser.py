"""Pages of inspections, in a browser: they are drawn, run nothing of a file, and stay quick."""

from collections.abc import Generator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import safejax
from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.hostile_texts import HOSTILE_TEXTS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

MOST_NODES = 2000
"""The most elements of a page, however many tensors it shows."""

NAMES = "[...document.querySelectorAll('.row .name')].map(name => name.title)"
NODES = "document.querySelectorAll('*').length"
SETTLED = "new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"


@pytest.fixture(scope="module")
def chromium() -> Generator[Browser]:
    with browser() as found:
        yield found


def show(chromium: Browser, inspection: safejax.Inspection, folder: Path) -> None:
    path = folder / "page.html"
    path.write_text(inspection.to_html())
    chromium.open(path)
    assert chromium.run("document.documentElement.dataset.drawn") == "true", chromium.faults


def choose(chromium: Browser, name: str) -> str:
    """Choose the row of a tensor; what is said of it."""
    chromium.run(
        f"[...document.querySelectorAll('.row')].find(row => row.firstChild.title === {name!r})"
        ".click()"
    )
    return chromium.run("document.getElementById('detail').innerText")


def search(chromium: Browser, text: str) -> str:
    chromium.run(
        f"(() => {{ const box = document.getElementById('search'); box.value = {text!r}; "
        "box.dispatchEvent(new Event('input')); return new Promise(f => setTimeout(f, 120)); })()"
    )
    return chromium.run("document.getElementById('found').textContent")


def test_a_page_shows_what_is_in_a_file(chromium: Browser, tmp_path: Path) -> None:
    tree = {"mlp": {"w": jnp.arange(32.0).reshape(8, 4), "b": jnp.zeros(4)}, "step": jnp.int32(3)}
    safejax.save(tree, tmp_path / "m.safetensors", metadata={"licence": "MIT"})
    show(chromium, safejax.inspect(tmp_path / "m.safetensors", stats=True), tmp_path)
    names = chromium.run(NAMES)
    assert set(names) == {"mlp", "mlp.w", "mlp.b", "step"}
    text = chromium.run("document.body.innerText")
    for said in ("float32", "[8, 4]", "MIT", "licence", "histogram", "3 tensors"):
        assert said in text
    detail = choose(chromium, "mlp.w")
    for said in ("mlp.w", "15.5", "31", "128 bytes"):
        assert said in detail
    assert chromium.run("document.querySelectorAll('svg.histogram rect').length") == 24
    # What is drawn is not all of one colour.
    assert (
        chromium.run(
            "new Set(new Uint32Array(map.getContext('2d').getImageData(0, 0, map.width, map.height)"
            ".data.buffer)).size"
        )
        > 2
    )
    assert chromium.faults == []
    assert len(chromium.requests) == 1


def test_the_map_is_zoomed_by_a_click(chromium: Browser, tmp_path: Path) -> None:
    tree = {"a": {"x": jnp.ones(64), "y": jnp.ones(64)}, "b": jnp.ones(1)}
    show(chromium, safejax.inspect(tree), tmp_path)
    crumbs = "[...document.querySelectorAll('#crumbs button')].map(each => each.textContent)"
    assert len(chromium.run(crumbs)) == 1
    chromium.run(
        "map.dispatchEvent(new MouseEvent('click', {clientX: map.getBoundingClientRect().left + 9, "
        "clientY: map.getBoundingClientRect().top + 60}))"
    )
    assert [each.split(" ")[0] for each in chromium.run(crumbs)] == ["Everything", "a"]
    assert int(chromium.run("map.dataset.boxes")) == 3
    chromium.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert len(chromium.run(crumbs)) == 1
    assert chromium.faults == []


def test_a_hostile_text_runs_nothing(chromium: Browser, tmp_path: Path) -> None:
    tree = {text: {text: jnp.ones(3), "value": text} for text in HOSTILE_TEXTS}
    data = safejax.serialize(tree, metadata={text: text for text in HOSTILE_TEXTS})
    show(chromium, safejax.inspect(data, stats=True), tmp_path)
    for number in range(len(HOSTILE_TEXTS)):
        chromium.run(f"document.querySelectorAll('.row')[{number}].click()")
    search(chromium, "<script> (")
    search(chromium, "*[.\\*")
    assert chromium.run("'hacked' in window") is False
    assert chromium.run("document.querySelectorAll('script').length") == 2
    assert chromium.run("document.querySelectorAll('img, iframe').length") == 0
    assert chromium.faults == []
    assert len(chromium.requests) == 1
    search(chromium, "")
    assert HOSTILE_TEXTS[0] in chromium.run("document.body.innerText")


def test_the_policy_lets_no_other_script_run(chromium: Browser, tmp_path: Path) -> None:
    page = safejax.inspect({"w": jnp.ones(3)}).to_html()
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", "<script>window.hacked=1</script></body>"))
    chromium.open(path)
    assert chromium.run("'hacked' in window") is False
    assert any("Content Security Policy" in fault for fault in chromium.faults)


def test_ten_thousand_tensors_need_few_elements(chromium: Browser, tmp_path: Path) -> None:
    tree = {
        "layers": [
            {f"w{number}": np.ones(4 + number, np.float16) for number in range(8)}
            for _ in range(1250)
        ]
    }
    show(chromium, safejax.inspect(tree), tmp_path)
    assert chromium.run(NODES) < MOST_NODES
    chromium.run("document.getElementById('open').click()")
    assert chromium.run(NODES) < MOST_NODES
    chromium.run("tree.scrollTop = tree.scrollHeight")
    chromium.run(SETTLED)
    assert chromium.run(NAMES)[-1] == "layers.1249.w7"
    assert chromium.run(NODES) < MOST_NODES
    assert search(chromium, "*.1234.*").startswith("8 of 10,000 tensors")
    assert "layers.1234.w3" in chromium.run(NAMES)
    assert search(chromium, "1234 W3").startswith("1 of 10,000")
    assert search(chromium, "none of them").startswith("0 of 10,000")
    assert chromium.run(NAMES) == []
    assert chromium.faults == []


def test_a_page_shows_which_device_holds_what(chromium: Browser, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"w": PartitionSpec("data", "model"), "whole": PartitionSpec()}
    tree = {
        name: jax.device_put(np.ones((8, 6), np.float32), NamedSharding(mesh, spec))
        for name, spec in specs.items()
    }
    tree["cube"] = jax.device_put(
        np.ones((2, 4, 2), np.float32), NamedSharding(mesh, PartitionSpec(None, "data", "model"))
    )
    show(chromium, safejax.inspect(tree), tmp_path)
    devices = chromium.run("document.getElementById('device-list').innerText")
    assert [f"cpu:{number}" in devices for number in range(8)] == [True] * 8
    # Of 192, 192 and 64 bytes, an eighth, all, and an eighth.
    assert devices.count("224 B") == 8
    detail = choose(chromium, "w")
    assert "[0:2, 0:3]" in detail
    assert "cpu:7" in detail
    assert "axis 0 in 4" in detail
    assert "[:, :]" in choose(chromium, "whole")
    assert "[:, 1:2, 0:1]" in choose(chromium, "cube")
    chromium.run("document.querySelectorAll('.device')[3].click()")
    assert chromium.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    assert chromium.faults == []


def test_a_page_is_light_or_dark_as_is_preferred(chromium: Browser, tmp_path: Path) -> None:
    show(chromium, safejax.inspect({"w": jnp.ones(64)}), tmp_path)
    colours: list[list[int]] = []
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.call("Emulation.setEmulatedMedia", features=media)
        chromium.run(SETTLED)
        back = chromium.run("getComputedStyle(document.body).backgroundColor")
        drawn = chromium.run("[...map.getContext('2d').getImageData(99, 99, 1, 1).data]")
        colours.append([int(back.strip("rgb()").split(",")[0]), sum(drawn[:3])])
    chromium.call("Emulation.setEmulatedMedia", features=[])
    assert colours[0][0] > 200 > 60 > colours[1][0]
    assert colours[0][1] > colours[1][1]


def test_an_empty_tree_has_a_page(chromium: Browser, tmp_path: Path) -> None:
    for tree in ({}, {"empty": jnp.ones((0, 3))}, {"deep." * 2000 + "x": jnp.ones(2)}):
        show(chromium, safejax.inspect(safejax.serialize(tree)), tmp_path)
        assert len(chromium.run(NAMES)) == len(tree)
        assert chromium.faults == []
