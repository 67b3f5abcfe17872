"""What the reference shows of the code, where that is not what the source says literally.

An example in a docstring is a block of code, a page that a docstring names is a link, options that
are declared once are shown as the parameters that they are, constants that are defaults as their
values, and overloads, which only type checkers need, are left out. A value that is the only one of
its class, such as `flatten`, has the docstring of the class.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_PAGE = re.compile(r"`?docs/([\w./-]+)\.md`?")
_OPTIONS = "_src.checkpoint.options"


class Reference(griffe.Extension):
    """Changes the objects of the package before they are shown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change all of them, once the package is read."""
        for found in _below(pkg):
            if isinstance(found, griffe.Attribute) and found.docstring is None:
                _take_docstring(found)
        for found in _below(pkg):
            if found.docstring is not None:
                found.docstring.value = _as_markdown(found.docstring.value)
            if isinstance(found, griffe.Function):
                found.overloads = None
                if any(str(each.value) == "st.composite" for each in found.decorators):
                    del found.parameters["draw"]  # Hypothesis gives it.
                _show_options(found, pkg)
                _show_defaults(found, pkg)


def _below(parent: griffe.Module | griffe.Class) -> Iterator[Any]:
    for member in parent.members.values():
        if not member.is_alias:
            yield member
            if isinstance(member, griffe.Module | griffe.Class):
                yield from _below(member)


def _as_markdown(text: str) -> str:
    text = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    return _PAGE.sub(r"[\1](../\1.md)", text)  # All reference pages are in one folder.


def _take_docstring(value: griffe.Attribute) -> None:
    made = re.fullmatch(r"(\w+)\(\)", str(value.value))
    if made is not None and value.parent is not None:
        found = value.parent.members.get(made[1])
        if isinstance(found, griffe.Class) and found.docstring is not None:
            value.docstring = griffe.Docstring(found.docstring.value)


def _show_defaults(function: griffe.Function, package: griffe.Module) -> None:
    """Put values in the place of the names of constants."""
    for parameter in function.parameters:
        if isinstance(parameter.default, griffe.ExprName):
            path = parameter.default.canonical_path.removeprefix(f"{package.name}.")
            with contextlib.suppress(KeyError):
                value = package[path]
                if isinstance(value, griffe.Attribute) and value.value is not None:
                    parameter.default = value.value


def _show_options(function: griffe.Function, package: griffe.Module) -> None:
    """Put the fields of a `TypedDict` in the place of `**options: Unpack[...]`."""
    for parameter in list(function.parameters):
        found = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
        if found is None:
            continue
        del function.parameters[parameter.name]
        defaults = package[f"{_OPTIONS}.Options"]
        for option in package[f"{_OPTIONS}.{found[1]}"].attributes.values():
            function.parameters.add(
                griffe.Parameter(
                    option.name,
                    annotation=str(option.annotation).strip("'\""),
                    kind=griffe.ParameterKind.keyword_only,
                    default=defaults[option.name].value,
                )
            )
