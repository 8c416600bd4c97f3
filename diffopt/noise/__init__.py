"""How an increment for a tree is drawn: from the bits to the numbers."""
