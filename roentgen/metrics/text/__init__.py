"""Images and words: retrieval, alignment, and what an image-to-text model says."""
