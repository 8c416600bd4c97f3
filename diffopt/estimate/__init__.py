"""What a run tells: the step size, the learning coefficient."""
