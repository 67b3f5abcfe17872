"""Many processes on one machine save and load one tree: `python -m benchmarks.many`.

Each process has two virtual CPU devices, and holds a part of every leaf. The sides take turns
within the same group of processes. What is told is the time of the slowest process.
"""

SIDES = ("safejax", "Orbax")
"""What is compared."""
