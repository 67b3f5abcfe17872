"""Crash states: what may be on a disk after a power cut at any moment of a save.

`recording` has what saves really ask of the system, by strace; `history` replays it and says which
operations there were; `states` is the model of what a disk may have kept of them; `oracle` says
what safejax and the `safetensors` package make of such a state; `kinds` are the saves.
"""
