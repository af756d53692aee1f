"""Models whose every prediction is known in closed form: what solvers and guidance are measured against."""
