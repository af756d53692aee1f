"""The jobs of a folder as the tools that only read them see them: what was set, what was measured, and which numbers may stand
side by side."""
