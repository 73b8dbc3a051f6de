"""What each training example did to a later quantity, from one recorded run: AdamW-influence, and what it is held to.

`trajectory` is the recorded run, `adamw` the optimizer and its adjoint, `losses` the model's part, `unrolling` and
`checkpoint_scores` the attributors, `retraining` the truth they are measured by.
"""
