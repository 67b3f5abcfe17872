"""Transforms: steps from Leaves to Leaves, one idea in each module.

Nothing is exported here: most transforms have the name of their module, so that a function of
this package would be taken for the module, and mypy does. `safejax` exports them.
"""
