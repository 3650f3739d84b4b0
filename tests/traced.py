"""torch.compile makes graphs and guards as ever, but no code, in a script that imports this."""

import torch

compiled_for_real = torch.compile


def traced(function, options=None, **given):
    return compiled_for_real(function, backend="eager", **given)


torch.compile = traced
