"""Mutations: what keeps files whole is broken, one thing at a time, and tests have to fall."""
