"""Noise schedules looked at: as tables, curves and figures, by the command `research-schedule`."""
