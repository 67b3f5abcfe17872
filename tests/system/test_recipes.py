"""Recipes with real checkpoints of transformers: import, parts, export, and what models compute.

It needs torch and transformers. From PyPI, torch brings gigabytes of CUDA, so the part `recipes`
of .ci/run takes Debian's.
"""

from pathlib import Path

import pytest

WHERE = "the recipes' tests need torch and safejax[test-recipes], as in the part recipes of .ci/run"
pytest.importorskip("torch", reason=WHERE)
pytest.importorskip("transformers", reason=WHERE)

import torch  # noqa: E402
import transformers  # noqa: E402

from examples import chat  # noqa: E402
from tests.support.recipes import checks  # noqa: E402 - what it imports may be missing
from tests.support.recipes.checks import BY_HAND, FORWARDS, Checkpoint  # noqa: E402
from tests.support.recipes.models import CASES  # noqa: E402


@pytest.fixture(scope="module", params=CASES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return Checkpoint.made(request.param, tmp_path_factory.mktemp("theirs"))


def test_the_import_is_that_by_hand(checkpoint: Checkpoint) -> None:
    checks.imported(checkpoint)


def test_each_device_has_its_part(checkpoint: Checkpoint) -> None:
    checks.parts(checkpoint)


def test_the_export_is_their_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checks.exported(checkpoint, tmp_path / "exported")


def test_the_outputs_are_theirs(checkpoint: Checkpoint) -> None:
    if checkpoint.name not in FORWARDS:
        pytest.skip("there is no model in JAX for it")
    assert checks.difference(checkpoint) < 1e-4


def test_every_case_has_a_conversion_by_hand() -> None:
    assert BY_HAND.keys() == CASES.keys()


@pytest.mark.parametrize("which", ["its own", "qwen3"])
def test_the_example_decodes_the_tokens_that_transformers_does(which: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if which == "its own":
        chat.write(folder)
    else:
        Checkpoint.made(which, folder)
    prompt = [5, 17, 2, 80, 33]
    cls = transformers.AutoModelForCausalLM
    model, report = cls.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(report.values()), report
    model.generation_config.eos_token_id = None  # To be as long as ours.
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    assert chat.main(folder, *map(str, prompt)) == wanted[0].tolist()
