"""Benchmarks: safejax compared with its peers, and with the limits of the machine.

    python -m benchmarks --quick                          # 64 MiB, a few minutes
    python -m benchmarks --only load,devices              # only these cases or groups
    python -m benchmarks --json all.json --plot all.png   # 1 GiB, about an hour
    python -m benchmarks --from all.json --plot all.png   # tables and chart of a run
    python -m benchmarks --device                         # checks and speed on a GPU

Each side does its work in a fresh process, and the sides take turns in each round. The first
round is not timed: it checks every bit of the results, and measures memory, page faults and bytes
read. Before every round, the process does the same work with a tree of 64 KiB, brings the file
into the page cache, and touches and frees as much memory as it will need.

A **case** is a value in `cases`. A **side** is a module in `sides` with a function for each of
its cases, which prepares the work and returns it. A **target** is a row in `targets`.
"""
