"""Label names of the public collections in roentgen's vocabulary, and what an uncertain label becomes.

A name that is missing from a table below has no counterpart in ``roentgen.prompts.FINDINGS``; it is left out rather
than bent into the nearest finding (CheXpert's "Lung Lesion" is a nodule or a mass, "Pleural Other" is any pleural
disease that is not an effusion), and ``No Finding`` is 0 where such a label is present.

Sources: Irvin et al. 2019 (CheXpert: 14 observations, -1 = uncertain; MIMIC-CXR-JPG has the same columns), Wang et al.
2017 (NIH), Bustos et al. 2020 (PadChest: a tree of radiographic findings), Demner-Fushman et al. 2016 (Open-i: MeSH).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pandas as pd

from roentgen.errors import UserError

Uncertain = Annotated[Literal["blank", "0", "1"], "what a label of -1 becomes"]
NO_FINDING = "No Finding"

CHEXPERT_14: dict[str, str] = {
    "No Finding": "No Finding",
    "Cardiomegaly": "Cardiomegaly",
    "Lung Opacity": "Lung Opacity",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Pleural Effusion": "Effusion",
}
CHEXPERT_OUTSIDE = ("Enlarged Cardiomediastinum", "Lung Lesion", "Pleural Other", "Fracture", "Support Devices")
"""The other five of the fourteen. "Support Devices" is not a disease and does not refute ``No Finding``."""

NIH_14 = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
"""Names that are roentgen's too."""

PADCHEST: dict[str, tuple[str, ...]] = {
    "normal": ("No Finding",),
    "atelectasis": ("Atelectasis",),
    "atelectasis basal": ("Atelectasis",),
    "laminar atelectasis": ("Atelectasis",),
    "lobar atelectasis": ("Atelectasis",),
    "round atelectasis": ("Atelectasis",),
    "segmental atelectasis": ("Atelectasis",),
    "total atelectasis": ("Atelectasis",),
    "cardiomegaly": ("Cardiomegaly",),
    "pleural effusion": ("Effusion",),
    "loculated pleural effusion": ("Effusion",),
    "loculated fissural effusion": ("Effusion",),
    "hydropneumothorax": ("Effusion", "Pneumothorax"),
    "pneumothorax": ("Pneumothorax",),
    "pleural thickening": ("Pleural_Thickening",),
    "apical pleural thickening": ("Pleural_Thickening",),
    "calcified pleural thickening": ("Pleural_Thickening",),
    "consolidation": ("Consolidation",),
    "pneumonia": ("Pneumonia",),
    "atypical pneumonia": ("Pneumonia",),
    "infiltrates": ("Infiltration",),
    "alveolar pattern": ("Lung Opacity",),
    "ground glass pattern": ("Lung Opacity",),
    "pulmonary edema": ("Edema",),
    "emphysema": ("Emphysema",),
    "pulmonary fibrosis": ("Fibrosis",),
    "hiatal hernia": ("Hernia",),
    "nodule": ("Nodule",),
    "multiple nodules": ("Nodule",),
    "pulmonary mass": ("Mass",),
}

MESH: dict[str, tuple[str, ...]] = {
    "normal": ("No Finding",),
    "Pulmonary Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Pleural Effusion": ("Effusion",),
    "Hemothorax": ("Effusion",),
    "Hydropneumothorax": ("Effusion", "Pneumothorax"),
    "Hemopneumothorax": ("Effusion", "Pneumothorax"),
    "Pneumothorax": ("Pneumothorax",),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Infiltrate": ("Infiltration",),
    "Opacity": ("Lung Opacity",),
    "Airspace Disease": ("Lung Opacity",),
    "Pulmonary Edema": ("Edema",),
    "Emphysema": ("Emphysema",),
    "Pulmonary Emphysema": ("Emphysema",),
    "Bullous Emphysema": ("Emphysema",),
    "Pulmonary Fibrosis": ("Fibrosis",),
    "Hernia, Hiatal": ("Hernia",),
    "Hernia, Diaphragmatic": ("Hernia",),
    "Nodule": ("Nodule",),
    "Mass": ("Mass",),
    "Thickening": ("Pleural_Thickening",),
}
"""Head of a MeSH term -> findings. What follows the head can exclude it: see ``sources.openi.mesh_labels``."""


def label_column(cells: pd.Series, uncertain: Uncertain = "blank", *, path: object = "") -> pd.Series:
    """Cells (str) of a label table as float64: 1.0 (present), 0.0 (absent) or NaN (blank; -1 as ``uncertain`` says).

    Raises:
        UserError: for any other value, naming ``path``, the column and the row of the first bad cell.
    """
    known = {"": math.nan, "nan": math.nan, "1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
    known |= dict.fromkeys(("-1", "-1.0"), math.nan if uncertain == "blank" else float(uncertain))
    cells = cells.str.strip()
    bad = ~cells.isin(list(known)).to_numpy()
    if bad.any():
        raise UserError(
            f"{path}, column {cells.name!r}, row {int(bad.argmax()) + 1}: a label is {cells[bad].iloc[0]!r}; write 1 "
            "(present), 0 (absent), -1 (uncertain) or leave it blank"
        )
    return cells.map(known).astype("float64")


def chexpert_labels(table: pd.DataFrame, uncertain: Uncertain = "blank", *, path: object = "") -> pd.DataFrame:
    """CheXpert's fourteen columns (str) as roentgen's findings, one float64 column each, same index.

    ``No Finding`` = 1 makes what is blank beside it 0, as the labeller gives it only where it found nothing; any
    disease that is present, also one outside the vocabulary, makes a blank ``No Finding`` 0.

    Raises:
        UserError: when a column is missing or a cell is none of 1, 0, -1 and blank.
    """
    missing = [column for column in (*CHEXPERT_14, *CHEXPERT_OUTSIDE) if column not in table.columns]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]!r}; it needs the fourteen CheXpert labels")
    labels = pd.DataFrame(
        {finding: label_column(table[column], uncertain, path=path) for column, finding in CHEXPERT_14.items()}
    )
    outside = [
        label_column(table[column], uncertain, path=path) for column in CHEXPERT_OUTSIDE if column != "Support Devices"
    ]
    diseases = [finding for finding in labels if finding != NO_FINDING]
    found = (labels[diseases] == 1).any(axis=1) | (pd.concat(outside, axis=1) == 1).any(axis=1)
    normal = (labels[NO_FINDING] == 1) & ~found
    labels[NO_FINDING] = labels[NO_FINDING].mask(labels[NO_FINDING].isna() & found, 0.0)
    for finding in diseases:
        labels[finding] = labels[finding].mask(labels[finding].isna() & normal, 0.0)
    return labels
