"""The variants of LoRA, one file each, named for what its paper calls it.

All but LoRA+ are changes of variables: the parameters of a slot are its own, what the products run
on (A [R, D], B [O, R], and for DoRA a factor per output) is made of them after each update
(`spread`), and after a backward their gradients are made of those of what ran (`gather`).
`weights.py` calls these two; which variant a slot is says its spec.
"""
