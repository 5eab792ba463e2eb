"""What images of a class come from. Each source is one file and knows nothing of the others."""
