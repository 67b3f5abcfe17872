"""Tables of correspondences: rows and axes as they are written, what they take, what they make.

`axes` and `rows` parse, `matching` says which row takes which name, `sizes` infers those of named
axes, `examining` finds all that is at fault, of which `accounts` makes one report, and `applying`
makes the views, which `rearranging` takes apart and puts together.
"""
