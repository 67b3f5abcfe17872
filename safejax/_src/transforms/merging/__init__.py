"""Merging leaves by a function: `rules` says which ones, `axes` is the notation of what goes
together, `calling` calls the function, first on small blocks, to see what it returns, and `views`
has the views of that.
"""
