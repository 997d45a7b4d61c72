"""Exports a finished run: one verified file that does not need kbaseline, and a model card."""
