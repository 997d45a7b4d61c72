"""A run: its record, inference, results and report."""
