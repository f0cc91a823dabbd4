"""The composition root: the only package that knows every component.

`project` reads the parameters, `models` builds and loads networks, `training` and `evaluation` run them. Import the
module that is needed: a stage depends on what it imports, and on nothing else.
"""
