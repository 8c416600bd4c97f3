"""What may be given, and how it is read: keys, scalars, trees, functions."""
