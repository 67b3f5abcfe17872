"""A file in an object store is loaded whole: `python -m benchmarks.far`.

The store is a server on the loopback, which lets each request wait. The sides take turns, each
round in a process of its own. What is told is the time until every value is in memory.
"""

SIDES = ("safejax, s3fs", "safejax, obstore", "download, load", "s3fs alone", "obstore alone")
"""What is compared. "Alone" is ranges into one buffer, of which nobody makes arrays."""
