"""Models that make images of texts: what they have in common, and one folder for each family."""

# Family -> its package, which has ``Sampling``, ``check_folder`` and ``load``. ``family`` in a model's roentgen.json
# names one; a folder without it is a diffusers pipeline.
FAMILIES = {
    "diffusion": "roentgen.generators.diffusion",
    "masked": "roentgen.generators.masked",
}
