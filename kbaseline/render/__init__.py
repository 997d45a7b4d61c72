"""Rendering: plots, images as data URIs, HTML and Markdown templates."""
