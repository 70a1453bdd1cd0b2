"""Families: how a published kind of model is recognised, and the pipeline that its bundles declare."""
