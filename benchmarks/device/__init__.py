"""Benchmarks for devices that are not the CPU: whether lazy leaves work there, and how fast.

    python -m benchmarks --device                      # in less than 8 minutes; 2 GiB
    python -m benchmarks --device --json device.json

One process does all, without a network, on one device or on all that there are. First come the
checks: what lazy leaves do is compared, bit by bit, with what plain arrays do on the device. Then
the sides take turns in each round, and each is given beside the rate at which page-locked memory
is copied to the device. On devices of the CPU all of it runs, too, but says nothing of speed.
"""
