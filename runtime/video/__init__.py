"""A video as the vision tower wants it: which frames are shown, decoding them, and their pixel values."""
