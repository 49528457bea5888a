"""Renderers: pure functions of a laid-out document or of a report."""
