"""Extractors written in Python: a job's ``extract: "example:page"`` calls the function `page` of ``example.py`` here.

They are part of the crawler's release, so every worker runs the same ones, and nothing else can be called by a job.
"""
