"""Serves a finished run on this machine: a page to drop pictures on, and a JSON endpoint."""
