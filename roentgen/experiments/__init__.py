"""Studies that are run once for a paper: augmentation, what metrics notice, what text encoders tell."""
