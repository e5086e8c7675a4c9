"""Does the image show what the prompt says: findings, their calibration, and sides."""
