"""Cohorts: from images, volumes or a seed to one prepared form, split by subject."""

from oasis_lib.cohort.prepare import prepare
from oasis_lib.cohort.store import SPLITS, Cohort, CohortError, Split, open_cohort

__all__ = ["SPLITS", "Cohort", "CohortError", "Split", "open_cohort", "prepare"]
