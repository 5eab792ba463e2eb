"""What gives a label to an image that has none. Each labeler is one file and knows nothing of the others."""
