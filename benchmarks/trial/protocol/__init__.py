"""How any claim is tried: pairs and their statistics, verdicts, stored cells, frozen settings."""
