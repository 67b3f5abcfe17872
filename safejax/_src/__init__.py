"""What safejax is made of. Nothing in here is imported from outside of the package.

Users import `safejax`, `safejax.errors`, `safejax.testing` and the adapters, one for each
framework, whose names and paths stay; names and paths in here may change in any version.
"""
