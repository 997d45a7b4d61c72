"""Serves a finished run over HTTP: a web page and a JSON endpoint."""
