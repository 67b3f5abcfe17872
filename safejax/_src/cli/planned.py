"""Plan: what a load onto a mesh would do, on virtual devices of the CPU."""

import contextlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from safejax._src.checkpoint.finding import Path
from safejax._src.format import strict_json
from safejax._src.inspection.inspect import inspect
from safejax._src.leaves.rules import sharding_rules
from safejax._src.planning.dry_run import plan
from safejax._src.planning.plan import Plan


def plan_of(path: Path, axes: Mapping[str, int] | None, rules: str | None, file: str) -> Plan:
    """The plan of a load of `path` onto a mesh; `rules` is the JSON text of `file`."""
    if axes is None:
        return plan(path)
    mesh = _mesh(axes)
    specs = [] if rules is None else parse_rules(rules, file, axes)
    return plan(path, sharding=sharding_rules(mesh, specs))


def page_of(found: Plan) -> str:
    """The plan as a page: what is held where, and what a load would say."""
    said = (*found.problems, *found.warnings)
    return replace(inspect(found.avals), source=found.source, warnings=said).to_html()


def as_json(found: Plan) -> dict[str, Any]:
    """The plan as JSON has it."""
    devices = {str(device): asdict(each) for device, each in found.devices.items()}
    processes = {str(index): asdict(each) for index, each in found.processes.items()}
    leaves = {
        leaf.name: {
            "shape": leaf.shape,
            "dtype": str(leaf.dtype),
            "spec": str(getattr(leaf.sharding, "spec", "")),
            "in_place": leaf.in_place,
        }
        for leaf in found.leaves
    }
    return {
        "source": found.source, "nbytes": found.nbytes, "devices": devices,
        "processes": processes, "leaves": leaves, "problems": found.problems,
        "warnings": found.warnings,
    }  # fmt: skip


def parse_rules(text: str, file: str, axes: Mapping[str, int]) -> list[tuple[str, PartitionSpec]]:
    """The rules in a JSON object from patterns to lists with an entry for each axis of an array.

    An entry is null, the name of an axis of the mesh, or a list of such names.
    """

    def fault(sentence: str) -> ValueError:
        example = '{"*.kernel": [null, "model"]}'
        return ValueError(f"{file}: {sentence}; a file of rules is like {example}")

    try:
        table = strict_json.parse(text)
    except ValueError as error:
        raise fault(f"expected JSON; {error}") from None
    if not isinstance(table, dict):
        raise fault(f"expected an object from patterns to lists, got {table!r:.80}")
    found: list[tuple[str, PartitionSpec]] = []
    for pattern, entries in cast("dict[str, Any]", table).items():
        if not isinstance(entries, list):
            raise fault(f"{pattern!r}: expected a list of axes of the mesh, got {entries!r:.80}")
        spec: list[Any] = []
        for entry in cast("list[Any]", entries):
            names = cast("list[Any]", entry) if isinstance(entry, list) else [entry]
            for name in names:
                if not (name in axes if isinstance(name, str) else name is None):
                    raise fault(
                        f"{pattern!r}: expected null or an axis of the mesh, {', '.join(axes)}, "
                        f"got {name!r:.80}"
                    )
            spec.append(tuple(names) if isinstance(entry, list) else entry)
        found.append((pattern, PartitionSpec(*spec)))
    return found


def _mesh(axes: Mapping[str, int]) -> Mesh:
    count = math.prod(axes.values())
    config: Any = jax.config
    config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has.
        config.update("jax_num_cpu_devices", count)
        # JAX refuses to be told twice how many devices there are.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    devices = jax.devices("cpu")[:count]
    if len(devices) < count:
        raise ValueError(f"--mesh: expected {count} devices of the CPU, got {len(devices)}")
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices)
