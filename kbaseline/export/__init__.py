"""Exports a finished run: one file that needs no kbaseline, checked before it appears, and its model card."""
