"""Cohorts: from what people have (or from a seed) to one prepared form, split by person."""

from oasis_lib.cohort.plan import CohortError
from oasis_lib.cohort.prepare import prepare
from oasis_lib.cohort.store import SPLITS, Cohort, Split, open_cohort

__all__ = ["SPLITS", "Cohort", "CohortError", "Split", "open_cohort", "prepare"]
