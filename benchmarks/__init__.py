"""Benchmarks: safejax beside its peers, and beside what the machine can do at all.

    python -m benchmarks --quick                          # 64 MiB, some minutes
    python -m benchmarks --only load,devices              # cases, or groups of them
    python -m benchmarks --json all.json --plot all.png   # 1 GiB, an hour or so
    python -m benchmarks --from all.json --plot all.png   # the tables and the chart again

Each side does its work in a fresh process, and sides take turns, round by round. A first round
is not timed: it checks every bit of what came out, and measures memory, page faults and bytes
read. Before every round the process does the same work with a tree of 64 KiB, brings the file
into the page cache, and touches and frees as much memory as it will need.

A **case** is a value in `cases`. A **side** is a module in `sides` with a function for each of
its cases, which prepares the work and returns it. A **target** is a row in `targets`.
"""
