"""Train one network from the same initial weights with several optimizers, and report on them."""
