"""Networks: the model zoo, backbones and their weights, the classifier, faster convolutions on a CPU."""
