"""Save and load, for whole trees: the main functions, which compose the rest."""
