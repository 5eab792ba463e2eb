"""Select: accept or reject an image, with a named and counted reason."""
