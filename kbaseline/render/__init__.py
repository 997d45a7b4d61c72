"""Pictures and pages: plots, images as PNG, HTML and Markdown templates."""
