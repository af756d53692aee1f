"""Families of models: a file each, on top of what they share (`pipeline_model`)."""
