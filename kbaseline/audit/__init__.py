"""What to know about a set of images before training on it: copies, suspect labels, odd images, shortcuts, a floor."""
