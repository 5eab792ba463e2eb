"""Image generators: loading, drawing, fitting, and how good a generated set is.

Every generator is drawn from in the same way: a list of `Draw`s in, float images out, each a function of its own draw
and of the fixed batch size alone.
"""
