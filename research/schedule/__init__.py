"""Noise schedules looked at: as curves and tables (`research-schedule`), and by a linter that drives them."""
