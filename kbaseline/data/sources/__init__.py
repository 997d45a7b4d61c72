"""Sources of images, one module each, and the registry that finds the one a configuration names."""
