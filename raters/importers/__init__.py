"""People's labels from where they were born: tables, exports of annotation tools, the paper's data sets -> a corpus.

`formats` tells what a source is; `table_items` and a module for each tool read it into `source_items`; `draft` collects
them, `label_scales` finds the scale, and `corpus_folder` writes the corpus.
"""
