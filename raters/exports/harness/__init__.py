"""What is copied into exported folders, one file per harness; none of it is imported here.

`raters.exports.judge` is the file beside it there that rates.
"""
