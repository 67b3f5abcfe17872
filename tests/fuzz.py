"""Fuzzing by coverage: `python -m tests.fuzz TARGET [--seconds N]`, where `.[fuzz]` is installed.

TARGET is one of `tests.support.fuzzing.TARGETS`, or `all`, which divides the seconds among them.
libFuzzer mutates the seeds and what is in `tests/fuzzed/TARGET`, and keeps what reaches code that
nothing has reached before. What breaks a rule is written to `tests/fuzzed/TARGET`, and is a case of
`tests/system/test_fuzzed.py` from then on; the exit status says so.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOUND = Path(__file__).parent / "fuzzed"
NAMES = (
    "strict_json", "header", "record", "index", "template", "msgpack", "npy", "npz", "orbax",
)  # fmt: skip


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target; does not return."""
    # Only there where something is fuzzed.
    atheris: Any = importlib.import_module("atheris")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with atheris.instrument_imports(include=["safejax", "tests.support.fuzzing"]):
        target = importlib.import_module("tests.support.fuzzing").TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for n, seed in enumerate(target.seeds()):
            (corpus / str(n)).write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        found = FOUND / name
        found.mkdir(parents=True, exist_ok=True)
        atheris.Setup(
            [
                sys.argv[0], f"-max_total_time={seconds}", "-max_len=2048", "-timeout=20",
                "-rss_limit_mb=4096", f"-dict={words}", f"-artifact_prefix={found}/",
                "-print_final_stats=1", "-verbosity=0", str(corpus), str(found),
            ],
            target.check,
        )  # fmt: skip
        atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args(arguments)
    if given.target != "all":
        fuzz(given.target, given.seconds)
    each = max(1, given.seconds // len(NAMES))
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(each)]
    return max(abs(subprocess.run([*command, name], check=False).returncode) for name in NAMES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
