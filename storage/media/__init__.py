"""Image and video files: formats, decoding, perceptual hashes."""
