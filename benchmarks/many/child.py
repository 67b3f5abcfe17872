"""One process of a group; process 0 prints what was measured."""

import json
import sys

import jax


def main() -> None:
    """Run the cases in the group that the command line tells of."""
    number, processes, port, mib, repeats = map(int, sys.argv[1:6])
    folder, sides, names = sys.argv[6], sys.argv[7].split(","), sys.argv[8:]
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    # It asks for devices, so it has to be imported after that.
    from benchmarks.many.cases import run

    seconds = run(names, sides, mib, repeats, folder)
    if number == 0:
        report = {"processes": processes, "mib": mib, "repeats": repeats, "seconds": seconds}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
