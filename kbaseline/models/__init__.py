"""Networks: the zoo, backbones and their weights, the classifier on top, faster layers on a CPU."""
