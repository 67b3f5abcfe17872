"""`recipes.of`: what is read of a checkpoint, which rows its recipe has, and what it refuses.

tests/system/test_recipes.py compares the recipes with transformers.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import safejax
from safejax import InvalidFileError, ShardingError, TransformError, recipes

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8,
    "tie_word_embeddings": False,
}  # fmt: skip


def llama(prefix: str = "model.", *, head: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a small Llama."""
    shapes = {f"{prefix}embed_tokens.weight": (6, 8), f"{prefix}norm.weight": (8,)}
    if head:
        shapes["lm_head.weight"] = (6, 8)
    for i in range(2):
        layer = f"{prefix}layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (8,),
            f"{layer}post_attention_layernorm.weight": (8,),
            f"{layer}self_attn.q_proj.weight": (8, 8),
            f"{layer}self_attn.k_proj.weight": (4, 8),
            f"{layer}self_attn.v_proj.weight": (4, 8),
            f"{layer}self_attn.o_proj.weight": (8, 8),
            f"{layer}mlp.gate_proj.weight": (12, 8),
            f"{layer}mlp.up_proj.weight": (12, 8),
            f"{layer}mlp.down_proj.weight": (8, 12),
        }
    draw = np.random.default_rng(0).standard_normal
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, Any], config: dict[str, Any] = LLAMA) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def theirs_of(recipe: recipes.Recipe) -> set[Any]:
    return {row.written[0] for row in recipe.table.rows}


# ---- where it is read


def test_a_folder_is_loaded_onto_a_mesh_and_exported(tmp_path: Path) -> None:
    tensors = llama()
    folder = write(tmp_path / "theirs", tensors)
    with safejax.observe_reads() as log:
        recipe = recipes.of(folder)
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        rules = recipe.rules(mesh, {"kv_heads": "model", "embed": "data"})
        params = safejax.load(folder, transform=recipe.transform, sharding=rules)
        keys = params["layers"]["attention"]["k"]["kernel"]
        assert keys.shape == (2, 8, 2, 2)
        assert keys.sharding.spec == P(None, "data", "model", None)
    assert log.nbytes == 0
    safejax.save(params, tmp_path / "ours", transform=recipe.transform.inverse, max_shard_bytes=900)
    exported = safejax.flatten(safejax.load(tmp_path / "ours"))
    assert exported.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(np.asarray(exported[name]), array)


def test_a_file_in_the_folder_a_url_and_parsed_values_give_the_same(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    folder = write(tmp_path / "theirs", llama())
    recipe = recipes.of(folder)
    assert recipes.of(folder / "model.safetensors") == recipe
    assert recipes.of(f"file://{folder}") == recipe
    assert recipes.of(LLAMA, names=llama()) == recipe
    assert recipes.of(LLAMA, names=safejax.flatten(safejax.load(folder))) == recipe
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/recipe/", recursive=True)
    assert recipes.of("/recipe", fs=memory) == recipe
    assert recipes.of("memory://recipe") == recipe


def test_a_recipe_is_a_value_that_is_shown() -> None:
    recipe = recipes.of(LLAMA, names=llama())
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert repr(recipe) == (
        "<recipe for 'llama': 12 rows; axes vocab, embed=8, layer=2, heads=4, head_dim, "
        "kv_heads=2, mlp>"
    )
    lines = str(recipe).splitlines()
    assert lines[0] == repr(recipe)
    assert lines[1].split() == ["model.embed_tokens.weight", "embed.embedding", "vocab", "embed"]
    assert len(lines) == 13


def test_it_is_found_in_the_package() -> None:
    assert safejax.recipes is recipes
    assert "recipes" in dir(safejax)


# ---- the names that are there


def test_a_model_without_its_head_has_names_without_the_prefix(tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["LlamaModel"]}
    folder = write(tmp_path, llama("", head=False), config)
    params = safejax.load(folder, transform=recipes.of(folder).transform)
    assert params.keys() == {"embed", "layers", "norm"}


def test_a_head_that_the_configuration_promises_must_be_there(tmp_path: Path) -> None:
    folder = write(tmp_path, llama(head=False))
    with pytest.raises(TransformError, match=r"rows that take no name \(1\): 'lm_head.weight'"):
        safejax.load(folder, transform=recipes.of(folder).transform)


def test_a_head_that_is_tied_may_be_there(tmp_path: Path) -> None:
    for head in (True, False):
        folder = write(
            tmp_path / str(head), llama(head=head), {**LLAMA, "tie_word_embeddings": True}
        )
        params = safejax.load(folder, transform=recipes.of(folder).transform)
        assert ("head" in params) == head


def test_layers_that_are_missing_are_found_by_the_configuration(tmp_path: Path) -> None:
    folder = write(tmp_path, llama(), {**LLAMA, "num_hidden_layers": 3})
    with pytest.raises(TransformError, match=r"expected 3 for \{layer\} \(sizes\), got 2"):
        safejax.load(folder, transform=recipes.of(folder).transform)


def test_without_names_all_that_may_be_there_is_in_the_table() -> None:
    assert "model.layers.{_i}.self_attn.rotary_emb.inv_freq?" in theirs_of(recipes.of(LLAMA))
    named = theirs_of(recipes.of(LLAMA, names=llama()))
    assert not any("?" in name or "rotary" in name for name in named)


def test_first_checkpoints_of_bert_have_other_names_of_norms() -> None:
    old = ["bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.gamma"]
    config = {"model_type": "bert", "num_hidden_layers": 2}
    assert "bert.encoder.layer.{layer}.output.LayerNorm.beta" in theirs_of(
        recipes.of(config, names=old)
    )
    assert "bert.encoder.layer.{layer}.output.LayerNorm.bias" in theirs_of(recipes.of(config))


def test_masks_that_gpt2_has_stored_are_left_out() -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 2}
    names = ["wte.weight", "h.0.attn.bias"]
    rows = {row.written[:2] for row in recipes.of(config, names=names).table.rows}
    assert ("h.{_i}.attn.bias", None) in rows


def test_the_layer_of_deepseek_for_further_tokens_is_none_of_the_layers() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "num_attention_heads": 4}
    names = [f"model.layers.{i}.input_layernorm.weight" for i in range(5)]
    recipe = recipes.of(config, names=names)
    leaves = safejax.Leaves({name: np.ones(2) for name in names})
    renamed = safejax.rename({"model.layers.4.*": "mtp.0.*"})
    assert recipe.transform == safejax.chain(renamed, recipe.table)
    assert "mtp.0.input_layernorm.weight" in renamed(leaves)
    assert ("mtp.0.*", "mtp.0.*") in {row.written for row in recipe.table.rows}
    assert (
        recipes.of(config, names=names[:4]).transform == recipes.of(config, names=names[:4]).table
    )


# ---- every family

NEEDED: dict[str, Any] = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "text_config": {}, "vision_config": {},
}  # fmt: skip


@pytest.mark.parametrize("model_type", recipes.MODEL_TYPES)
def test_a_table_is_made_of_what_a_configuration_must_have(model_type: str) -> None:
    recipe = recipes.of({"model_type": model_type, **NEEDED})
    assert recipe.model_type == model_type
    assert recipe.transform.inverse.inverse == recipe.transform
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    first = next(iter(recipe.axes))
    assert any("x" in spec for _, spec in recipe.rules(mesh, {first: "x"}).rules)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"bert, clip, .*, got 'mamba': write a table"),
        ({"model_type": None}, "config: expected a string for 'model_type', got None"),
        ({"num_attention_heads": "4"}, "1 or more, for 'num_attention_heads', got '4'"),
        ({"num_attention_heads": 0}, "1 or more, for 'num_attention_heads', got 0"),
        ({"num_attention_heads": None}, "1 or more, for 'num_attention_heads', got None"),
        ({"hidden_size": True}, "1 or more, for 'hidden_size', got True"),
        ({"architectures": "LlamaModel"}, "expected a list for 'architectures', got 'LlamaModel'"),
        ({"model_type": "clip"}, "expected an object for 'text_config', got None"),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": [1]},
            r"the recipe for 'qwen3_moe' expects experts in all layers, got mlp_only_layers=\[1\]",
        ),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "got decoder_sparse_step=2"),
        (
            {"model_type": "whisper", "encoder_attention_heads": 2},
            "expects encoder_attention_heads=2 here, too, got decoder_attention_heads=None",
        ),
    ],
)
def test_what_no_recipe_can_be_made_of_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransformError, match=message):
        recipes.of({**LLAMA, **changes})


def test_an_axis_that_the_family_lacks_is_refused() -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    with pytest.raises(ShardingError, match=r"got 'expert': it has .*kv_heads"):
        recipes.of(LLAMA).rules(mesh, {"expert": "x"})


def test_a_folder_without_a_configuration_is_told_so(tmp_path: Path) -> None:
    (write(tmp_path, llama()) / "config.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        recipes.of(tmp_path)
    assert f"in {tmp_path}/config.json: without it, give its values" in caught.value.__notes__[0]


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_configuration_that_is_no_json_object_is_told_so(tmp_path: Path, text: str) -> None:
    (write(tmp_path, llama()) / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidFileError, match=r"config.json: expected a JSON object, got"):
        recipes.of(tmp_path)
