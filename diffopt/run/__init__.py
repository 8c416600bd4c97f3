"""From a loss to draws: `sample`, and what it is made of."""
