"""What `make bench` measures: each part of ours against a committed, well-written alternative, in fresh processes.

A part is a module with `ours(size)` and `baseline(size)`; both do the same work and return what they measured.
"""
