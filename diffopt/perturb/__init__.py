"""Noise inside the gradient and on the labels: methods over one hook (`perturbed`)."""
