"""Surrogates, one a file: OPERATOR_NAME.py, which `quantizer.surrogate=NAME` chooses.

The function `build()` of a file returns a `Surrogate` (functional.py).
"""
