"""Decisions. Pure functions of (picture, now) that return what, why, and when to look again."""
