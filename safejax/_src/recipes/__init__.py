"""Recipes: for each family of models, its table of correspondences."""
