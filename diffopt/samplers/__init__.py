"""One method a file, over one frame (`base`)."""
