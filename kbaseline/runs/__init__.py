"""A run: its record, inference with it, its results, its report."""
