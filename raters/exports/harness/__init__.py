"""What is copied into exported folders, one file per harness; none of it is imported here.

`raters.exports.judge` is the `judge.py` beside it there.
"""
