"""The claims, a file each: where a claim is tried, its rivals, its controls and its picture."""
