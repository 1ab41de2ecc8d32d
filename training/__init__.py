"""From pictures to weights: data sets, the training loop, published models."""
