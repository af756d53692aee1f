"""How a sweep is driven by a launcher: chunks of jobs, workers that run them, and ranks that share one job."""
