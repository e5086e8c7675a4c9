"""Do synthetic images improve a classifier: arms, training, figures and tables."""
