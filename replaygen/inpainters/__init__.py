"""Backends that fill a hole in a picture, behind one seam: OpenCV, and LaMa through lama-cleaner's server."""
