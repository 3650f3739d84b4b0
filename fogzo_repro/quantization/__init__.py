"""Quantizers of weights and inputs, and the layers that use them.

A quantizer is a file with `build`, which returns the module of one weight. It has

* ``forward(weight)``: the quantized weight, with the surrogate's derivative in its backward pass;
* ``levels(units)``: the level (in units of the scale) that each latent weight rounds to;
* ``units(weight)``: the latent weight in units of the scale;
* ``perturbation_scale(weight)``: the alpha that enters epsilon = alpha * epsilon_bar,
  broadcastable to the weight (the level spacing; half of it for sign);
* ``smoothing``: its smoothing law, or the pair (operator, surrogate) that selects one of the
  paper's; a quantizer without one trains by the STE alone;
* ``slope(weight)``: h' of each weight, where that is not what back-propagation gives elementwise;
* where it rounds in rotated coordinates, ``rotate`` and ``rotate_back``, orthonormal and inverse
  to each other, on a tensor whose last axes are the weight's; ``units`` are rotated then;
* where ``forward`` leaves its value rotated, ``quantized(weight)``, the value rotated back.

A quantizer of a layer's inputs, which `build_input` of the same file returns, is any module that
maps them to their quantized values.
"""

from fogzo_repro.quantization.functional import Surrogate, surrogate_slope
from fogzo_repro.quantization.replace import quantize_layers, use_exact_products
