"""The module of safejax 0.5 with its functions; its import says what to use now."""

from safejax._src.moved import module_error

raise module_error("core")
