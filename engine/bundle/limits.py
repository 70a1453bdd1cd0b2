"""Limits of a manifest that more than one check needs; others stand in the annotation of their field."""

from __future__ import annotations

FORMAT_VERSION = 3
MAX_T = 1_000_000  # timesteps of a schedule
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_DIMENSION = 2**31
MAX_RANK = 8
MAX_INPUTS = 32
MAX_SIDE = 65_536  # of an image, in pixels
MAX_CALLS = 64  # in one section of the pipeline
MAX_TEXT = 200
MAX_DIRECTIONS = 4096
MAX_STRENGTH = 1000.0  # of an edit; 1 is the way from one mean to the other
MAX_VOCABULARY_BYTES = 16 * 2**20
MIN_TOKENS = 3  # of an input that text is encoded to: begin, one token, end
MAX_STARTS = 1024  # damages in the table that `refine` looks its start up in
MAX_STAGES = 8  # of a cascade
MAX_GUIDES = 16
MAX_GUIDE_SCALE = 1e6
MAX_CLASSES = 2**24  # of a guide's classifier
MAX_DIGITS = 20  # longer integers are no field of ours, and int() of a long text is quadratic
