"""What a checkpoint is, what is in it, and whether it can be loaded safely, told from its files without running any of it."""
