"""The linter of schedulers: doubtful settings and noise levels, found before the first job runs, and by `research-schedule`."""
