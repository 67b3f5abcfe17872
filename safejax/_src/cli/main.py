"""The entry point of the command `safejax`: it runs what is asked for, and ends in one clear line.

The exit status is 0 if all is well, 1 if what was asked about is not (files differ, a file is not
valid, a plan has problems), 2 for trouble, 130 after Ctrl-C and 141 if nobody reads the output.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from safejax.errors import SafejaxError

_EXTRA: Final = frozenset({"click", "rich"})
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or with those of the process; its exit status."""
    try:
        # Imported by name: the command line is an extra.
        commands = importlib.import_module("safejax._src.cli.commands")
        return commands.run(arguments)
    except KeyboardInterrupt:
        return _end("interrupted", _INTERRUPTED)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            return _end(str(error), 2)
        return _end(f"the command line needs {error.name}: pip install 'safejax[cli]'", 2)
    except MemoryError:
        return _end("out of memory", 2)
    except Exception as error:  # noqa: BLE001 - whatever a file, or its file system, leads to
        return _end(_line_of(error), 2)


def _line_of(error: Exception) -> str:
    """What an error says; its class, too, where it is not one that explains itself."""
    explains = isinstance(error, OSError | ValueError | TypeError | SafejaxError)
    text = str(error) if explains else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text


def _end(message: str, status: int) -> int:
    line = " ".join(message.split())
    shown = "".join(each if each.isprintable() else "�" for each in line)
    # There is none if it was closed when Python started; the status says enough.
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"safejax: {shown}\n")
        sys.stderr.flush()
    return status
