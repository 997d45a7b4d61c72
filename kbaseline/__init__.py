"""kbaseline: a strong image-classification baseline in Keras 3 on JAX."""
