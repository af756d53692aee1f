"""Solvers of the project's own, one a file: each a table of numbers over a grid of noise levels."""
