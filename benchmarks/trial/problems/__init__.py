"""What claims are tried on: landscapes, networks and streams, and how each is run."""
