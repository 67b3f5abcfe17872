"""The module of safejax 0.5 for flat dicts; its import says what to use now."""

from safejax._src.moved import module_error

raise module_error("utils")
