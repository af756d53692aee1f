"""Noise levels that are found: for one model, solver and number of steps, by dynamic programming or by descent of the error."""
